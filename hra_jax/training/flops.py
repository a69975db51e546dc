"""FLOPs of a function's matrix products, counted before it is compiled.

The count is of the whole function, on all devices together: the body of a scan as often as it runs, and what the
backward pass recomputes. A multiplication and the addition that goes with it are two FLOPs.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def matmul_flops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
    """FLOPs of all matrix products and convolutions.

    Args:
      jaxpr: of the function, as `jax.make_jaxpr(f)(*args)` or `jax.jit(f).trace(*args).jaxpr` give it.

    Returns:
      2 x the multiplications. Branches of a conditional count as the most expensive of them, and a `while` whose number
      of rounds is not known as one round.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return sum(_of_equation(equation) for equation in inner.eqns)


def _of_equation(equation: Any) -> int:
    name, params, invars, outvars = equation.primitive.name, equation.params, equation.invars, equation.outvars
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        axes: tuple[int, ...] = contracted
        left = _shape(invars[0])
        return 2 * math.prod(_shape(outvars[0])) * math.prod(left[axis] for axis in axes)
    if name == "conv_general_dilated":
        # A kernel holds [output features, input features of one group, window...] in some order.
        kernel, features = _shape(invars[1]), int(params["dimension_numbers"].rhs_spec[0])
        return 2 * math.prod(_shape(outvars[0])) * math.prod(kernel) // kernel[features]
    if name == "cond":
        return max(matmul_flops(branch) for branch in params["branches"])
    inner = sum(matmul_flops(part) for value in params.values() for part in _jaxprs(value))
    return inner * int(params["length"]) if name == "scan" else inner


def _shape(variable: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = variable.aval.shape
    return shape


def _jaxprs(value: Any) -> Iterator[core.ClosedJaxpr | core.Jaxpr]:
    """The functions among an equation's parameters."""
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _jaxprs(part)


def of(function: Callable[..., Any], *args: Any) -> int:
    """`matmul_flops` of a function for arguments that may be shapes."""
    return matmul_flops(jax.make_jaxpr(function)(*args))


class CountedStep:
    """FLOPs of a train step for every shape of batch; a shape is counted when it first comes.

    Args:
      step: `train_step(state, frozen, batch, ...)`; it is traced, and never run.
      more: its further arguments.
    """

    def __init__(self, step: Callable[..., Any], *more: Any):
        self._step, self._more = step, more
        self._known: dict[tuple[Any, ...], int] = {}

    def __call__(self, state: Any, frozen: Any, batch: dict[str, Any]) -> int:
        """FLOPs of one step, on all devices together."""
        shapes = tuple((name, leaf.shape) for name, leaf in sorted(batch.items()))
        if shapes not in self._known:
            self._known[shapes] = of(self._step, state, frozen, batch, *self._more)
        return self._known[shapes]
