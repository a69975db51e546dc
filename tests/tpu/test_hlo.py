"""Reading compiled programs: loops are counted as often as they run, groups of devices in every notation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hra_jax.tpu.hlo import Program
from hra_jax.training import sharding

LAYERS, ROWS, WIDTH = 6, 64, 256


def chain(weights, x):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
    return (x**2).sum()


def program(*, data: int, fsdp: int, layers: int = LAYERS) -> Program:
    mesh = sharding.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None))
    weights = jax.ShapeDtypeStruct((layers, WIDTH, WIDTH), jnp.float32, sharding=split)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=rows)
    gradient = jax.jit(jax.grad(chain), out_shardings=split)
    return Program(gradient.lower(weights, x).compile().as_text())


def test_a_loop_of_twice_the_rounds_communicates_twice_as_much():
    few, many = (program(data=2, fsdp=4, layers=layers) for layers in (LAYERS, 2 * LAYERS))
    assert few.unknown_trips() == many.unknown_trips() == 0
    counted = [{(c.kind, c.group): (c.count, c.payload) for c in side.collectives()} for side in (few, many)]
    assert counted[0].keys() == counted[1].keys()
    for kind, (count, payload) in counted[0].items():
        assert counted[1][kind] == (2 * count, 2 * payload), kind
    # Every layer's weights are needed whole, forward and backward.
    gathered = sum(payload for (kind, _), (_, payload) in counted[0].items() if kind == "all-gather")
    assert gathered >= 2 * LAYERS * WIDTH * WIDTH * 4


def test_memory_traffic_of_a_loop_counts_every_round():
    few, many = (program(data=1, fsdp=1, layers=layers).traffic() for layers in (LAYERS, 2 * LAYERS))
    assert many == pytest.approx(2 * few, rel=0.02)
    # Weights are read forward and backward, and their gradients written; this compiler also copies each layer's slice.
    least = 3 * LAYERS * WIDTH * WIDTH * 4
    assert least < few < 8 * least


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (3, 20)])
def test_rounds_follow_from_start_and_bound_of_the_counter(start, stop):
    def f(x):
        return jax.lax.fori_loop(start, stop, lambda i, x: jnp.sin(x @ x) + i, x)

    x = jnp.ones((64, 64))
    once = Program(jax.jit(lambda x: jnp.sin(x @ x) + 1).lower(x).compile().as_text()).traffic()
    found = Program(jax.jit(f).lower(x).compile().as_text())
    assert found.unknown_trips() == 0
    assert found.traffic() / once == pytest.approx(stop - start, rel=0.6)


def test_a_loop_of_unknown_length_is_counted_as_unknown():
    def f(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1.0, lambda x: x * 0.5, x)

    assert Program(jax.jit(f).lower(jnp.ones(8)).compile().as_text()).unknown_trips() == 1


def reduced(groups: str, *, slice_of=None) -> list:
    text = f"""HloModule m
ENTRY %main (p: f32[4,8]) -> f32[4,8] {{
  %p = f32[4,8]{{1,0}} parameter(0)
  ROOT %r = f32[4,8]{{1,0}} all-reduce(%p), channel_id=1, {groups}, use_global_device_ids=true, to_apply=%add
}}
"""
    return Program(text, slice_of=slice_of).collectives()


@pytest.mark.parametrize(
    ("notation", "groups"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ],
)
def test_groups_of_devices_are_read_in_every_notation(notation, groups):
    (found,) = reduced(notation)
    size = len(groups[0])
    assert (found.kind, found.group, found.count, found.payload) == ("all-reduce", size, 1, 128)
    assert found.moved == 2 * 128 * (size - 1) / size
    # Two slices: devices 0 to 3, and 4 to 7. And every other device.
    for slice_of in ([0, 0, 0, 0, 1, 1, 1, 1], [0, 1] * 4):
        crosses = any(slice_of[a] != slice_of[b] for group in groups for a, b in itertools.pairwise(group))
        assert reduced(notation, slice_of=slice_of)[0].between_slices is crosses


def test_a_slice_that_a_fusion_reads_counts_and_not_what_it_is_cut_from():
    text = """HloModule m
%inside (a: f32[100,8], i: s32[]) -> f32[1,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = f32[1,8]{1,0} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,8}
}

ENTRY %main (p: f32[100,8], q: s32[]) -> f32[1,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %q = s32[] parameter(1)
  ROOT %f = f32[1,8]{1,0} fusion(%p, %q), kind=kLoop, calls=%inside
}
"""
    assert Program(text).traffic() == 32 + 4 + 32


@pytest.mark.parametrize("short", [False, True], ids=["get-tuple-element", "#"])
def test_elements_of_tuples_are_read_in_either_notation(short):
    elements = """
  %weights = f32[100,8]{1,0} get-tuple-element(%state), index=1
  %pair = (s32[], f32[8]{0}) get-tuple-element(%state), index=0
  %place = s32[] get-tuple-element(%pair), index=0
"""
    operands = "%state#1, %state#0#0" if short else "%weights, %place"
    text = f"""HloModule m

%taken (p.0: f32[100,8], p.1: s32[]) -> f32[1,8] {{
  %p.0 = f32[100,8]{{1,0}} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,8]{{1,0}} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={{1,8}}
}}

ENTRY %main (state: ((s32[], f32[8]), f32[100,8])) -> f32[1,8] {{
  %state = ((s32[], /*index=1*/f32[8]{{0}}), f32[100,8]{{1,0}}) parameter(0){"" if short else elements}
  ROOT %row = f32[1,8]{{1,0}} fusion({operands}), kind=kLoop, calls=%taken
}}
"""
    assert Program(text).traffic() == 32 + 4 + 32


def test_a_slice_counts_behind_bitcasts_and_in_a_fusion_inside_of_a_fusion():
    text = """HloModule m
%cut (a: f32[100,8], i: s32[]) -> f32[8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,8}
  ROOT %flat = f32[8]{0} bitcast(%row)
}

%outer (b: f32[800], j: s32[], x: f32[8]) -> f32[8] {
  %b = f32[800]{0} parameter(0)
  %j = s32[] parameter(1)
  %x = f32[8]{0} parameter(2)
  %same = f32[100,8]{1,0} bitcast(%b)
  %inner = f32[8]{0} fusion(%same, %j), kind=kLoop, calls=%cut
  ROOT %sum = f32[8]{0} add(%inner, %x)
}

ENTRY %main (p: f32[800], q: s32[], r: f32[8]) -> f32[8] {
  %p = f32[800]{0} parameter(0)
  %q = s32[] parameter(1)
  %r = f32[8]{0} parameter(2)
  ROOT %f = f32[8]{0} fusion(%p, %q, %r), kind=kOutput, calls=%outer
}
"""
    assert Program(text).traffic() == 32 + 4 + 32 + 32
    # What is taken whole beside the slice counts whole.
    whole = text.replace("ROOT %sum = f32[8]{0} add(%inner, %x)", "ROOT %sum = f32[8]{0} custom(%inner, %x, %same)")
    assert Program(whole).traffic() == 3200 + 4 + 32 + 32


def test_rows_that_a_fusion_scatters_count_and_not_the_bank():
    text = """HloModule m
%put (a: f32[100,8], i: s32[2,1], u: f32[2,8]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[2,1]{1,0} parameter(1)
  %u = f32[2,8]{1,0} parameter(2)
  ROOT %s = f32[100,8]{1,0} scatter(%a, %i, %u), update_window_dims={1}, to_apply=%set
}

ENTRY %main (p: f32[100,8], q: s32[2,1], r: f32[2,8]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %q = s32[2,1]{1,0} parameter(1)
  %r = f32[2,8]{1,0} parameter(2)
  ROOT %f = f32[100,8]{1,0} fusion(%p, %q, %r), kind=kLoop, calls=%put
}
"""
    assert Program(text).traffic() == 8 + 64 + 64


def test_each_result_of_a_fusion_counts_what_is_written_of_it():
    text = """HloModule m
%put (a: f32[100,8], i: s32[], u: f32[8]) -> (f32[100,8], f32[8], f32[8]) {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %u = f32[8]{0} parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} bitcast(%u)
  %new = f32[100,8]{1,0} dynamic-update-slice(%a, %row, %i, %zero)
  %double = f32[8]{0} add(%u, %u)
  %kept = f32[8]{0} multiply(%u, %u)
  ROOT %all = (f32[100,8]{1,0}, f32[8]{0}, f32[8]{0:S(1)}) tuple(%new, %double, %kept)
}

ENTRY %main (p: f32[100,8], q: s32[], r: f32[8]) -> (f32[100,8], f32[8], f32[8]) {
  %p = f32[100,8]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %r = f32[8]{0} parameter(2)
  ROOT %f = (f32[100,8]{1,0}, f32[8]{0}, f32[8]{0:S(1)}) fusion(%p, %q, %r), kind=kLoop, calls=%put
}
"""
    # The index, the new row, read and written, and the result beside it; the third one stays on the chip.
    assert Program(text).traffic() == 4 + 32 + 32 + 32


def test_the_largest_buffers_are_named_with_what_makes_them():
    def f(x):
        with jax.named_scope("wide"):
            y = jnp.sort(jnp.outer(x, x), axis=0)
        return y.sum()

    found = Program(jax.jit(f).lower(jnp.ones(512)).compile().as_text()).largest(2)
    assert found[0]["bytes"] == 512 * 512 * 4
    assert "wide" in found[0]["operator"] and found[0]["type"] == "f32[512,512]"


def test_no_array_of_a_split_program_holds_the_global_batch():
    arrays = [array for _, array in program(data=8, fsdp=1).arrays()]
    assert any(ROWS // 8 in array.shape for array in arrays)
    assert not any(ROWS in array.shape for array in arrays)
    whole = [array for _, array in program(data=1, fsdp=1).arrays()]
    assert any(ROWS in array.shape for array in whole)


def test_arrays_in_the_chips_own_memory_are_no_traffic():
    text = """HloModule m
ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %c = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} negate(%p)
  ROOT %d = bf16[8,128]{1,0:T(8,128)(2,1)} negate(%c)
}
"""
    assert Program(text).traffic() == 2 * np.prod((8, 128)) * 2
