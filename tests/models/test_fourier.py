"""Convolution by matrix products: the same as scipy's."""

import re

import jax
import numpy as np
import pytest
import scipy.signal
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hra_jax.models import fourier


@pytest.mark.parametrize(("samples", "taps", "delay"), [(1, 1, 0), (700, 301, 150), (250, 1000, 0)])
def test_convolution_of_each_row_is_that_of_scipy_in_float64(samples, taps, delay):
    rng = np.random.default_rng(taps)
    x, kernels = rng.standard_normal((3, samples)), rng.standard_normal((3, taps))
    expected = [
        scipy.signal.convolve(*pair, method="direct")[delay : delay + samples] for pair in zip(x, kernels, strict=True)
    ]
    out = jax.jit(fourier.convolve, static_argnames="delay")(*np.float32([x]), *np.float32([kernels]), delay=delay)
    np.testing.assert_allclose(out, expected, atol=3e-6 * np.linalg.norm(x) * np.linalg.norm(kernels) / 3)


def test_on_a_mesh_every_device_convolves_its_own_rows():
    rng = np.random.default_rng(0)
    x, kernels = np.float32(rng.standard_normal((16, 500))), np.float32(rng.standard_normal((16, 40)))
    rows = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec("data"))
    program = jax.jit(fourier.convolve, in_shardings=rows, out_shardings=rows).lower(x, kernels).compile()
    assert not re.search("all-gather|all-reduce|all-to-all|collective", program.as_text())
    expected = [scipy.signal.fftconvolve(*pair)[:500] for pair in zip(x, kernels, strict=True)]
    np.testing.assert_allclose(program(*jax.device_put((x, kernels), rows)), expected, atol=1e-4)
