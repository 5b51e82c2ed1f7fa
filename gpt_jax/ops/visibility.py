"""Which keys a query sees: one rule that every attention kernel obeys.

A token's slot is its index in the row; positions, which restart where packed
documents do, never decide what is visible. A query at slot t sees a key at
slot s where

  causal         s <= t
  prefix         s <= max(t, length of the row's prefix - 1)
  bidirectional  always

and, with a window, |t - s| < window. Documents that are packed into one row
never see each other.

Design choice: no kernel treats a prefix specially. All tokens of a prefix get
the slot of its last one, so that they see each other under a causal rule.

This file imports no jax: the ledger (flops.py), which is printed before jax is
loaded, counts by the same rule. Masks use the operators of the arrays given.
"""

import typing

from gpt_jax.config import FAMILIES, ModelConfig

# Score of a masked pair: finite, so that a fully masked row has a softmax.
MASK_VALUE = -1e30
# Slots of padding, which sees nothing and is seen by nothing under any rule.
QUERY_PADDING, KEY_PADDING = -1, 2**30


class Rule(typing.NamedTuple):
  """The static options of masks and attention scores.

  Attributes:
    is_causal: whether a query sees no later slot than its own.
    window: slots |t - s| < window are visible; None for all.
    softcap: scores become cap * tanh(score / cap) (Gemma 2), or None.
  """

  is_causal: bool = True
  window: int | None = None
  softcap: float | None = None


class TokenPositions(typing.NamedTuple):
  """Where tokens are: slot in the row, and document.

  Attributes:
    slots_BT: int32; B is 1 where all rows agree.
    segments_BT: int32, or None where a row is one document.
  """

  slots_BT: typing.Any
  segments_BT: typing.Any = None


def rule_of(model: ModelConfig, kind: str = "global") -> Rule:
  """Returns the rule of a layer of this kind (config.layer_kinds)."""
  window = model.sliding_window if kind == "local" else None
  return Rule(FAMILIES[model.family].is_causal, window, model.attn_softcap)


def slots_visible(rule: Rule, q_slots_BT, k_slots_BS):
  """Returns mask_BTS by slots alone."""
  q_BT1, k_B1S = q_slots_BT[..., None], k_slots_BS[:, None]
  if rule.is_causal:
    mask_BTS = k_B1S <= q_BT1
  else:
    mask_BTS = (k_B1S < KEY_PADDING) & (q_BT1 > QUERY_PADDING)
  if rule.window is not None:
    mask_BTS &= k_B1S > q_BT1 - rule.window
    if not rule.is_causal:
      mask_BTS &= k_B1S < q_BT1 + rule.window
  return mask_BTS


def visible(rule: Rule, queries: TokenPositions, keys: TokenPositions):
  """Returns mask_BTS, by slots and documents; B is 1 where all rows agree."""
  mask_BTS = slots_visible(rule, queries.slots_BT, keys.slots_BT)
  if queries.segments_BT is not None:
    mask_BTS &= queries.segments_BT[:, :, None] == keys.segments_BT[:, None]
  return mask_BTS


def any_visible(rule: Rule, q_slots_BT, k_slots_BS):
  """Returns whether some of these queries may see some of these keys.

  Compares only the smallest and largest slots, so that it is cheap; exact for
  contiguous slots.
  """
  first_q, last_q = q_slots_BT.min(), q_slots_BT.max()
  first_k, last_k = k_slots_BS.min(), k_slots_BS.max()
  if rule.is_causal:
    found = last_q >= first_k
  else:
    found = (last_q > QUERY_PADDING) & (first_k < KEY_PADDING)
  if rule.window is not None:
    found &= first_q - last_k < rule.window
    if not rule.is_causal:
      found &= first_k - last_q < rule.window
  return found


def visible_keys(rule: Rule, start: int, stop: int, length: int) -> slice:
  """Returns the keys that queries start:stop of a row in order may see."""
  low, high = 0, stop if rule.is_causal else length
  if rule.window is not None:
    low = max(0, start - rule.window + 1)
    high = min(high, stop - 1 + rule.window)
  return slice(low, high)


def visible_queries(rule: Rule, start: int, stop: int, length: int) -> slice:
  """Returns the queries of a row in order that may see keys start:stop."""
  low, high = start if rule.is_causal else 0, length
  if rule.window is not None:
    low = max(low, start - rule.window + 1)
    high = min(length, stop - 1 + rule.window)
  return slice(low, high)


def visible_part(rule: Rule, length: int) -> float:
  """Returns the part of the T x T scores that a kernel cannot skip.

  Half of them under causality; the diagonal is neglected.
  """
  window = rule.window
  if rule.is_causal:
    if window is None or window >= length:
      return 0.5
    return window * (length - window / 2) / length**2
  if window is None or window >= length:
    return 1.0
  return window * (2 * length - window) / length**2
