"""The public name of each metric: <phase>/<quantity>[_<unit>].

A sum has its public name from where it is made, inside the compiled step, to
metrics.jsonl. No jax is imported here.
"""

LOSS = "train/loss"
BALANCE_LOSS = "train/balance_loss"
Z_LOSS = "train/z_loss"
# Beside the sums of a batch: the number of targets, which divides them.
NUM_TARGETS = "train/num_targets"
GRAD_NORM = "train/grad_norm"
LEARNING_RATE = "train/learning_rate"
NUM_SKIPPED = "train/num_skipped"
# The ledger of skipped updates: a row for each, with one of the two set to 1.
SKIPPED_NONFINITE = "train/skipped_nonfinite"
SKIPPED_SPIKE = "train/skipped_spike"
# A rollback: at the step gone back to, the step that the run had come to, and
# the sequences of the order of data that are passed over so far.
ROLLED_BACK_FROM = "train/rolled_back_from"
PASSED = "data/sequences_passed"
TOKENS_PER_SECOND = "perf/tokens_per_second"
STEP_SECONDS = "perf/step_seconds"
MFU = "perf/mfu"
DATA_WAIT = "perf/data_wait_seconds"
TOKENS = "progress/tokens"
BATCH_HASH = "data/batch_hash"
# Of telemetry: |gradient|^2 and the sum of its variances over sequences, both
# unbiased, and so of use as means alone.
GRAD_SQUARE = "telemetry/grad_square"
GRAD_VARIANCE = "telemetry/grad_variance"


def eval_name(name: str, quantity: str) -> str:
  """Returns "eval/<set>/<quantity>"."""
  return f"eval/{name}/{quantity}"
