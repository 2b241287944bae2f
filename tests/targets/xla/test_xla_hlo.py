"""What is read from HLO: units, multiply-accumulates and collectives, on texts written by hand after XLA's own."""

from __future__ import annotations

import pytest

from gatewright.targets.xla.hlo import read

INTEGERS = """
%fused (a: s8[128,768], b: s8[768,3072]) -> s32[128,3072] {
  %a = s8[128,768]{1,0:T(8,128)(4,1)} parameter(0)
  %b = s8[768,3072]{1,0:T(8,128)(4,1)S(1)} parameter(1)
  ROOT %convolution.1 = s32[128,3072]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf, metadata={op_name="jit(f)/fc1/dot_general"}
}
"""
PICTURE = """
  %x = f32[1,56,56,64]{3,2,1,0} parameter(0)
  %w = f32[3,3,64,32]{3,2,1,0} parameter(1)
  %c = f32[1,56,56,32]{3,2,1,0} convolution(%x, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, operand_precision={PRECISION}, metadata={op_name="jit(f)/conv1/conv_general_dilated"}
"""  # noqa: E501
VECTOR = """
  %m = s32[64,10]{1,0} multiply(%p, %q), metadata={op_name="jit(f)/fc/dot_general"}
  ROOT %r = s32[10]{0} reduce(%m, %zero), dimensions={0}, to_apply=%add, metadata={op_name="jit(f)/fc/dot_general"}
"""
TALK = """
  %all-reduce.1 = f32[4,1000]{1,0} all-reduce(%d), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %ar = bf16[2,8]{1,0} all-reduce-start(%e), to_apply=%add
  %ard = bf16[2,8]{1,0} all-reduce-done(%ar)
  %ag = (f32[2,4]{1,0}, f32[4,4]{1,0}) all-gather-start(%f), dimensions={0}
  %agd = f32[4,4]{1,0} all-gather-done(%ag)
"""


def test_bytes_with_int32_sums_are_integers_on_the_matrix_unit() -> None:
    (product,) = read(INTEGERS).products
    assert (product.scope, product.operands, product.unit) == ("fc1", ("s8", "s8"), "int8")
    assert product.macs == 128 * 768 * 3072


@pytest.mark.parametrize(("precision", "unit"), [("highest,highest", "float32"), ("high,high", "float32"), ("default,default", "bf16")])
def test_the_passes_of_a_float_product_follow_from_its_precision(precision: str, unit: str) -> None:
    (product,) = read(PICTURE.replace("PRECISION", "{" + precision + "}")).products
    assert product.unit == unit
    assert product.macs == 56 * 56 * 32 * 9 * 64


def test_one_float_operand_is_no_integer_product() -> None:
    assert read(INTEGERS.replace("%b = s8", "%b = f32")).units() == {"fc1": "bf16"}
    assert read(INTEGERS.replace("%b = s8", "%b = s32")).units() == {"fc1": "int32"}


def test_a_precise_product_with_a_mask_is_precise() -> None:
    """XLA fuses a one-hot comparison into the product that it selects by."""
    text = PICTURE.replace("PRECISION", "{highest,highest}").replace("%x = f32", "%x = pred")
    assert [product.unit for product in read(text).products] == ["float32"]


def test_products_of_the_vector_unit_are_told_apart() -> None:
    assert read(VECTOR).units() == {"fc": "vector-int"}
    assert read(VECTOR.replace("s32", "f32")).units() == {"fc": "vector-float"}


def test_a_node_counts_as_its_widest_product() -> None:
    assert read(INTEGERS + VECTOR.replace("/fc/", "/fc1/")).units() == {"fc1": "int8"}


def test_collectives_are_counted_once_with_their_bytes() -> None:
    assert read(TALK).collectives == {"all-reduce": (2, 4 * 1000 * 4 + 2 * 8 * 2), "all-gather": (1, 4 * 4 * 4)}
    assert read(INTEGERS).collectives == {}
