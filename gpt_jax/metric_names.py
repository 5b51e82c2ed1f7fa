"""The public name of each metric: <phase>/<quantity>[_<unit>].

A metric has its public name from the compiled step that computes it to
metrics.jsonl. jax is not imported here.
"""

LOSS = "train/loss"
# The loss with train.label_smoothing; LOSS stays the plain one.
SMOOTHED_LOSS = "train/smoothed_loss"
# Nats per target of the blocks that predict tokens beyond the next.
FUTURE_LOSS = "train/future_loss"
# Nats per target by which a student diverges from its teacher.
TEACHER_KL = "train/teacher_kl"
BALANCE_LOSS = "train/balance_loss"
Z_LOSS = "train/z_loss"
# The part of the targets that are the most likely token.
ACCURACY = "train/accuracy"
ROUTER_Z_LOSS = "train/router_z_loss"
# The part of the assignments of tokens to experts that exceed a capacity.
DROPPED = "train/dropped_frac"
# The largest and smallest load of a layer's experts, 1 where all have the same;
# "/00" and so on, the layer, follows.
EXPERT_LOAD_MAX = "train/expert_load_max"
EXPERT_LOAD_MIN = "train/expert_load_min"
# For preferences: the mean rewards of chosen and of rejected answers, their
# difference, the part of the pairs where it is above 0, and the answers' mean
# log-probabilities in nats. In kto, answers are chosen or rejected by their
# labels, and right where the reward is on the label's side of the baseline.
CHOSEN_REWARD = "train/chosen_reward"
REJECTED_REWARD = "train/rejected_reward"
REWARD_MARGIN = "train/reward_margin"
REWARD_ACCURACY = "train/reward_accuracy"
CHOSEN_LOG_PROB = "train/chosen_log_prob"
REJECTED_LOG_PROB = "train/rejected_log_prob"
# For sampled answers: the mean reward, the estimated KL divergence from the
# reference, and the part of the tokens whose clipped ratio sets the loss.
REWARD = "train/reward"
KL = "train/kl"
CLIPPED = "train/clipped_frac"
# The number of targets, or of pairs, by which the sums of a batch are divided.
NUM_TARGETS = "train/num_targets"
GRAD_NORM = "train/grad_norm"
LEARNING_RATE = "train/learning_rate"
NUM_SKIPPED = "train/num_skipped"
# Each skipped update has a row in which one of these two is 1.
SKIPPED_NONFINITE = "train/skipped_nonfinite"
SKIPPED_SPIKE = "train/skipped_spike"
# A rollback, logged at the step that the run went back to: the step it had
# reached, and the number of sequences of the data order skipped so far.
ROLLED_BACK_FROM = "train/rolled_back_from"
PASSED = "data/sequences_passed"
TOKENS_PER_SECOND = "perf/tokens_per_second"
STEP_SECONDS = "perf/step_seconds"
MFU = "perf/mfu"
DATA_WAIT = "perf/data_wait_seconds"
TOKENS = "progress/tokens"
BATCH_HASH = "data/batch_hash"
# Estimates of |gradient|^2 and of the trace of its covariance over sequences.
# Unbiased but noisy: average before dividing.
GRAD_SQUARE = "telemetry/grad_square"
GRAD_VARIANCE = "telemetry/grad_variance"


def eval_name(name: str, quantity: str) -> str:
  """Returns "eval/<set>/<quantity>"."""
  return f"eval/{name}/{quantity}"
