"""Compiled HLO is read right: loops, groups, FLOPs, bytes, collectives.

The texts are made by hand in the compiler's form, with answers that can be
worked out on paper.
"""

import pytest

from gpt_jax.lab.plan import cost, hlo

LOOP = """
HloModule small, is_scheduled=true

%fused (p.0: bf16[8,64], p.1: bf16[64,32]) -> f32[8,32] {
  %p.0 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c.1 = f32[8,32]{1,0} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%body (s: (s32[], bf16[8,64], bf16[64,32], f32[8,32])) -> (s32[], bf16[8,64]) {
  %s = (s32[], bf16[8,64]{1,0}, bf16[64,32]{1,0:S(1)}, f32[8,32]{1,0}) \
parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[8,64]{1,0} get-tuple-element(%s), index=1
  %w = bf16[64,32]{1,0:S(1)} get-tuple-element(%s), index=2
  %one = s32[] constant(STEP)
  %next = s32[] add(%i, %one)
  %y = f32[8,32]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused
  %g = f32[8,128]{1,0} all-gather(%y), channel_id=1, \
replica_groups=[2,4]<=[8], dimensions={1}, metadata={op_name="a/b"}
  ROOT %t = (s32[], bf16[8,64]{1,0}, bf16[64,32]{1,0:S(1)}, f32[8,32]{1,0}) \
tuple(%next, %x, %w, %y)
}

%condition (s.1: (s32[], bf16[8,64], bf16[64,32], f32[8,32])) -> pred[] {
  %s.1 = (s32[], bf16[8,64]{1,0}, bf16[64,32]{1,0}, f32[8,32]{1,0}) \
parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %end = s32[] constant(12)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (a: bf16[8,64], b: bf16[64,32]) -> f32[8,32] {
  %a = bf16[8,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %y0 = f32[8,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
  %start = (s32[], bf16[8,64]{1,0}, bf16[64,32]{1,0}, f32[8,32]{1,0}) \
tuple(%zero, %a, %b, %y0)
  %loop = (s32[], bf16[8,64]{1,0}, bf16[64,32]{1,0}, f32[8,32]{1,0}) \
while(%start), condition=%condition, body=%body
  ROOT %out = f32[8,32]{1,0} get-tuple-element(%loop), index=3
}
"""


def parse(step: int = 1, text: str = LOOP) -> hlo.Module:
  return hlo.parse(text.replace("STEP", str(step)))


def loop_of(module: hlo.Module) -> tuple:
  main = module.computations[module.entry]
  return module, main.instructions["loop"], main


@pytest.mark.parametrize("step, trips", [(1, 12), (2, 6), (5, 3)])
def test_a_loop_runs_as_often_as_its_counter_says(step, trips):
  assert hlo.trip_count(*loop_of(parse(step))) == trips


def test_an_unknown_loop_is_counted_once_and_told():
  text = LOOP.replace("%zero = s32[] constant(0)", "%zero = s32[] rng(%a)")
  assert hlo.trip_count(*loop_of(parse(1, text))) == 0
  assert cost.measure(parse(1, text), 8, 1.0).unknown_loops == ["loop"]


def test_flops_count_a_loop_body_as_often_as_it_runs():
  product = 2 * 8 * 64 * 32
  assert cost.measure(parse(1), 8, 1.0).flops == 13 * product
  assert cost.measure(parse(2), 8, 1.0).flops == 7 * product  # the control


def test_bytes_in_vector_memory_are_not_hbm():
  found = {op.name: op.bytes for op in cost.measure(parse(), 8, 1.0).ops}
  x, w, y = 8 * 64 * 2, 64 * 32 * 2, 8 * 32 * 4
  assert found["y0"] == x + w + y
  assert found["y"] == x + y
  whole = LOOP.replace("S(1)", "")
  found = {op.name: op.bytes for op in cost.measure(parse(1, whole), 8, 1).ops}
  assert found["y"] == x + w + y  # the control


def test_a_collective_in_a_loop_counts_its_trips():
  (gather,) = cost.measure(parse(), 8, 1.0).collectives
  assert (gather.kind, gather.count) == ("all-gather", 12)
  assert gather.bytes == 4 * 8 * 32 * 4
  assert gather.groups == ((0, 1, 2, 3), (4, 5, 6, 7))


@pytest.mark.parametrize(
  "text, groups",
  [
    ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
    ("{}", [[0, 1, 2, 3]]),
    ("[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("[1,4]<=[4]", [[0, 1, 2, 3]]),
    ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
    (
      "mesh['a'=2,'b'=2], device_ids=([4]<=[2,2]T(1,0)) {'b'}",
      [[0, 2], [1, 3]],
    ),
    ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
  ],
)
def test_groups_of_devices_in_every_form(text, groups):
  assert hlo.read_groups(text, 4) == groups


PART = """
HloModule parts, is_scheduled=true

%all-reduce-scatter.1 (input: f32[64,16]) -> f32[8,16] {
  %input = f32[64,16]{1,0} parameter(0)
  %all-reduce.1 = f32[64,16]{1,0} all-reduce(%input), channel_id=5, \
replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %d = f32[8,16]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), \
dynamic_slice_sizes={8,16}
}

%first (a.0: bf16[8,16]) -> bf16[64,16] {
  %a.0 = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[64,16]{1,0} all-gather(%a.0), channel_id=7, \
replica_groups=mesh['x'=8] {'x'}, dimensions={0}, \
frontend_attributes={chain_id="1"}
}

%second (b.0: bf16[8,16]) -> bf16[64,16] {
  %b.0 = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[64,16]{1,0} all-gather(%b.0), channel_id=7, \
replica_groups=mesh['x'=8] {'x'}, dimensions={0}, \
frontend_attributes={chain_id="1"}
}

ENTRY %main (p: f32[64,16], q: bf16[8,16]) -> f32[8,16] {
  %p = f32[64,16]{1,0} parameter(0)
  %q = bf16[8,16]{1,0} parameter(1)
  %f.1 = bf16[64,16]{1,0} fusion(%q), kind=kCustom, calls=%first
  %f.2 = bf16[64,16]{1,0} fusion(%q), kind=kCustom, calls=%second
  %move = (bf16[8,16]{1,0}, bf16[8,16]{1,0}, u32[], u32[]) \
collective-permute-start(%q), channel_id=3, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %moved = bf16[8,16]{1,0} collective-permute-done(%move)
  ROOT %r = f32[8,16]{1,0} fusion(%p), kind=kCustom, \
calls=%all-reduce-scatter.1
}
"""


def test_collectives_in_fusions_are_seen_once():
  found = cost.measure(hlo.parse(PART), 8, 1.0).collectives
  rows = sorted((c.kind, c.count, c.bytes) for c in found)
  assert rows == [
    ("all-gather", 1, 64 * 16 * 2),
    ("collective-permute", 1, 8 * 16 * 2),
    ("reduce-scatter", 1, 64 * 16 * 4),
  ]
  apart = PART.replace('frontend_attributes={chain_id="1"}', "a={}")
  found = cost.measure(hlo.parse(apart), 8, 1.0).collectives
  assert sum(c.kind == "all-gather" for c in found) == 2  # the control


def test_a_batched_product_written_as_a_window_counts_no_holes():
  """12 heads of (16 x 8) (8 x 24), as the TPU compiler writes them."""
  text = """
HloModule heads, is_scheduled=true

ENTRY %main (a: f32[12,16,8], b: f32[12,24,8]) -> f32[12,16,24] {
  %a = f32[12,16,8]{2,1,0} parameter(0)
  %b = f32[12,24,8]{2,1,0} parameter(1)
  ROOT %c = f32[12,16,24]{2,1,0} convolution(%a, %b), \
window={size=12 stride=11 lhs_dilate=12}, dim_labels=0bf_0oi->0bf
}
"""
  flops = cost.measure(hlo.parse(text), 1, 1.0).flops
  assert flops == 2 * 12 * 16 * 24 * 8


BETWEEN = """
HloModule between, is_scheduled=true

ENTRY %main (p: f32[64,8]) -> f32[64,8] {
  %p = f32[64,8]{1,0} parameter(0)
  %token = token[] after-all()
  %send = (f32[64,8]{1,0}, u32[], token[]) send(%p, %token), channel_id=4, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name=\
"xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=4
  %recv = (f32[64,8]{1,0}, u32[], token[]) recv(%token), channel_id=5
  %got = (f32[64,8]{1,0}, token[]) recv-done(%recv), channel_id=5
  ROOT %r = f32[64,8]{1,0} get-tuple-element(%got), index=0
}
"""


@pytest.mark.parametrize(
  "slices, word, kind, size, count",
  [
    ("1,2", "ALL_REDUCE", "all-reduce", 2048, 2),
    ("1,2,3,4", "ALL_GATHER", "all-gather", 4 * 2048, 4),
    ("1:8", "ALL_REDUCE", "all-reduce", 2048, 8),
  ],
)
def test_what_the_network_carries_is_a_send_to_other_slices(
  slices, word, kind, size, count
):
  text = BETWEEN.replace("{1,2}x", f"{{{slices}}}x")
  text = text.replace("ALL_REDUCE", word)
  (found,) = cost.measure(hlo.parse(text), 8, 1.0).collectives
  assert (found.kind, found.bytes, found.slices) == (kind, size, count)
