"""Settings of an adapter against its tensors: what contradicts is refused before anything is allocated."""

import dataclasses
import math
import time

import jax.numpy as jnp
import pytest
from reference import tiny

from hra_jax.adapters import methods
from hra_jax.adapters.activations import ACTIVATIONS
from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.adapters.controllers import RECURRENCES
from hra_jax.adapters.declared import _shapes, check_declared
from hra_jax.adapters.heads import HEADS
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.adapters.methods import METHODS
from hra_jax.config.settings import integer, setting, settings_of
from hra_jax.errors import UserError

BARE = dict(conv_norm="none", conv_bias=False, norm_bias=False, attention_bias=False, ff_bias=False)
ENCODERS = [tiny.ENCODER, dataclasses.replace(tiny.ENCODER, n_layers=5, d_ff=40, vocab_size=31, **BARE)]


def declared(adapter, encoder=tiny.ENCODER):
    return {
        part: {path: {"shape": list(shape), "dtype": "float32"} for path, shape in shapes.items()}
        for part, shapes in _shapes(adapter, encoder).items()
    }


def variants():
    """Every method with its defaults, and hra with each of its recurrences, heads and activations."""
    yield from tiny.METHODS.values()
    for name, cls in METHODS.items():
        if name in methods._UNSAID[1]:
            yield cls()
    for option, entries in (("recurrence", RECURRENCES), ("head", HEADS), ("activation", ACTIVATIONS)):
        yield from (HierarchicalRecurrentAdapter(width=6, head_width=4, **{option: name}) for name in entries)
    yield HierarchicalRecurrentAdapter(width=1009, head_width=2022)  # the sizes of the encoders that stand for any


@pytest.mark.parametrize("adapter", list(variants()), ids=lambda a: "-".join(map(str, vars(a).values())))
def test_what_a_method_makes_is_taken_with_its_encoder_and_without_and_every_other_shape_is_refused(adapter):
    for encoder in ENCODERS:
        try:
            tensors = declared(adapter, encoder)
        except UserError:  # reads a norm that this encoder lacks
            continue
        check_declared(adapter, tensors, where="x")
        check_declared(adapter, tensors, encoder, where="x")
    tensors = declared(adapter)
    for part, entries in tensors.items():
        for path, entry in entries.items():
            for axis in range(len(entry["shape"])):
                wrong = [*entry["shape"]]
                wrong[axis] += 1
                other = tensors | {part: entries | {path: entry | {"shape": wrong}}}
                with pytest.raises(UserError, match=rf"^x: tensors.{part}: '{path}' has the shape"):
                    check_declared(adapter, other, tiny.ENCODER, where="x")
            without = tensors | {part: {name: kept for name, kept in entries.items() if name != path}}
            with pytest.raises(UserError, match=f"lacks '{path}'"):
                check_declared(adapter, without, tiny.ENCODER, where="x")
        more = tensors | {part: entries | {"all_layers.extra": {"shape": [1]}}}
        for encoder in (tiny.ENCODER, None):
            with pytest.raises(UserError, match="'all_layers.extra' is no tensor"):
                check_declared(adapter, more, encoder, where="x")


@dataclasses.dataclass(frozen=True)
class OfHeads(Adapter):
    """A method with axes that no letter names: those of attention heads and of the convolution."""

    width: int = setting(3, integer(1, 9), "a size of its own")

    def init_own(self, rng, encoder):
        shape = (encoder.n_layers, self.width, encoder.n_heads, encoder.d_head)
        return no_parameters() | {
            "per_layer": {"keys": jnp.zeros(shape), "taps": jnp.zeros((encoder.kernel, self.width))}
        }


def test_axes_that_no_letter_names_may_be_anything_where_the_encoder_is_not_known():
    tensors = declared(OfHeads())
    check_declared(OfHeads(), tensors, where="x")
    check_declared(OfHeads(), tensors, tiny.ENCODER, where="x")
    with pytest.raises(UserError, match="^x: .*keys"):
        check_declared(OfHeads(width=4), tensors, where="x")
    with pytest.raises(UserError, match="^x: .*keys"):
        check_declared(OfHeads(), tensors, dataclasses.replace(tiny.ENCODER, n_heads=4), where="x")


def test_settings_that_contradict_the_tensors_are_refused_without_the_backbone_too():
    base = {name: methods.settings(adapter) for name, adapter in tiny.METHODS.items()}
    changes = [
        ("hra", {"width": 7}),
        ("hra", {"recurrence": "lstm"}),
        ("hra", {"reads": "nothing"}),
        ("hra", {"head": "linear"}),
        ("hra", {"head_width": 5}),
        ("hra", {"head_per_layer": True}),
        ("hra", {"output": "task"}),
        ("hra per layer", {"layers": [0, 1, 2]}),
        ("residual", {"width": 6}),
        ("residual", {"output": "task"}),
        ("lora", {"rank": 4}),
        ("lora", {"projections": ["attention.query", "ff1.up"]}),
        ("lora", {"projections": ["attention.query", "ff1.down", "convolution.gated"]}),
        ("lora", {"projections": ["attention.query", "ff1.up", "unknown"]}),
        ("lora and output", {"output": "backbone"}),
        ("bitfit", {"layers": [0]}),
        ("output", {"output": "characters", "output_size": 9}),
    ]
    for name, change in changes:
        adapter = methods.from_settings(base[name] | change)
        with pytest.raises(UserError, match="^x: "):
            check_declared(adapter, declared(tiny.METHODS[name]), where="x")
    reads = methods.from_settings(base["hra"] | {"reads": "ff1.up"})  # of a width that only the backbone tells
    with pytest.raises(UserError, match="^x: "):
        check_declared(reads, declared(tiny.METHODS["hra"]), tiny.ENCODER, where="x")


WRONG = {
    "int": [-1, 10**9, 10**60, 2.5, math.nan, True, "4", None, [4], {}],
    "float": [-0.5, 10**400, math.nan, math.inf, True, "0.1", None, [0.1]],
    "str": ["", "unknown\x1b[2J", 3, None, ["relu"], {}],
    "bool": [0, 1, "true", None, []],
    "tuple": ["attention.query", 3, None, [3.5], [-1], [10**9], ["a", "a"], [None], [[1]], {}],
}


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_has_a_type_and_a_range(name):
    defaults = methods.settings(METHODS[name]())
    for said in settings_of(METHODS[name]):
        kind = type(said.default).__name__
        for value in WRONG[kind]:
            if said.name == "reads" and value == "unknown\x1b[2J":
                continue  # what can be read is asked of the encoder
            started = time.process_time()
            with pytest.raises(UserError, match=rf"{name}\.{said.name}|{name}\.output") as error:
                methods.from_settings(defaults | {said.name: value})
            assert str(error.value).isprintable() and time.process_time() - started < 5


@pytest.mark.parametrize("alpha", [1.0000001e9, 1e38, 1e39, 1e308, 10**30])
def test_settings_that_overflow_are_refused(alpha):
    with pytest.raises(UserError, match=r"lora\.alpha = .*: allowed: a number above 0 and at most 1000000000$"):
        methods.from_settings(methods.settings(METHODS["lora"]()) | {"alpha": alpha})
    largest = methods.from_settings(methods.settings(METHODS["lora"]()) | {"alpha": 1e9})
    assert jnp.isfinite(jnp.float32(largest.alpha / largest.rank) * jnp.finfo(jnp.bfloat16).tiny)
