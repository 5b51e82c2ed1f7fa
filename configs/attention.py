"""The encoder-decoder of "Attention Is All You Need" (Vaswani et al. 2017).

Variants: laptop (minutes on two cores) and base. Post-norm, sinusoidal
positions, and one table that embeds source and target (times sqrt(D)) and is
also the output matrix. ReLU, dropout and label smoothing. The learning rate
rises for 4,000 steps and then falls as 1 / sqrt(step) (section 5.3: at its
peak it is 512^-0.5 4000^-0.5).

base has 63,082,496 parameters with the paper's 37,000 tokens, which are byte
pairs of both languages: 18,944,000 in the table, 18,914,304 in the encoder and
25,224,192 in the decoder. 36,864 of them are biases of the attention
projections, which the paper's equations lack. The paper's table 3 says 65 M.
The sizes in its other rows agree with each other, and with these layers, if
the table has about 41,000 rows (tests/contracts/test_published_counts.py).

base needs a file of text pairs, as two columns or two fields:

  bash launch/local.sh --config=configs/attention.py:base \\
    --config.data.source=pairs:PATH.tsv
"""

from configs import base

# variant: (layers of each stack, heads, width, MLP width)
SIZES = {"laptop": (2, 4, 128, 512), "base": (6, 8, 512, 2048)}


def get_config(variant: str = "laptop"):
  if variant not in SIZES:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(SIZES)}")
  layers, heads, width, mlp_dim = SIZES[variant]
  config = base.get_config()
  config.data.objective = "sequence_to_sequence"
  config.model.family = "encoder_decoder"
  config.model.num_layers = layers
  config.model.num_heads = heads
  config.model.model_dim = width
  config.model.mlp_dim = mlp_dim
  config.model.norm_placement = "post"
  config.model.norm_eps = 1e-6
  config.model.position = "sinusoidal"
  config.model.scaled_embeddings = True
  config.model.mlp = "relu"
  config.model.bias = True
  # Embeddings of unit variance after scaling by sqrt(D).
  config.model.init_std = width**-0.5
  config.optim.optimizer = "adam"
  config.optim.schedule = "inverse_sqrt"
  config.optim.beta2 = 0.98
  config.optim.eps = 1e-9
  config.optim.clip_norm = None
  config.train.label_smoothing = 0.1
  if variant == "laptop":
    # Reverses strings of digits.
    config.data.source = "digits:reverse"
    config.data.valid_frac = 0.05
    config.data.tokenizer = "chars"
    config.data.packing = "documents"
    config.data.seq_len = config.model.max_len = 64
    config.model.dropout_rate = 0.0
    config.optim.learning_rate = 1e-3
    config.optim.clip_norm = 1.0
    config.optim.warmup_steps = 200
    config.train.num_steps = 1000
    config.train.global_batch_size = 32
    config.eval.every_steps = 250
    config.sample.prompt = "31415926"
    return config
  config.data.tokenizer = "bpe:36998"
  config.data.packing = "documents"
  config.data.seq_len = config.model.max_len = 256
  # The 36,998 and two special tokens of the objective.
  config.model.vocab_size = 37_000
  config.model.dropout_rate = 0.1
  config.optim.learning_rate = (512 * 4000) ** -0.5
  config.optim.warmup_steps = 4000
  config.train.num_steps = 100_000
  # About 25,000 tokens of each language.
  config.train.global_batch_size = 100
  config.checkpoint.every_steps = 10_000
  return config
