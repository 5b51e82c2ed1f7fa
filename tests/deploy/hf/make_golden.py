"""Writes golden.json: small models, computed by transformers.

  python tests/deploy/hf/make_golden.py [CASE ...]

Needs torch and transformers; without a CASE all are made.

Weights are drawn by numpy, tensor by tensor in the order of their names, so
that the file holds shapes and results alone.
"""

import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
SMALL = dict(
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  vocab_size=61,
)
BERT = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
ROBERTA = BERT | dict(
  type_vocab_size=1, max_position_embeddings=66, pad_token_id=1
)
MODERNBERT = BERT | dict(
  num_hidden_layers=4,
  local_attention=6,
  global_attn_every_n_layers=3,
  pad_token_id=None,
)
NEOX = BERT | dict(num_attention_heads=2)
DEEPSEEK = BERT | dict(
  moe_intermediate_size=24,
  n_routed_experts=4,
  num_experts_per_tok=2,
  n_shared_experts=2,
  first_k_dense_replace=1,
  kv_lora_rank=16,
  q_lora_rank=None,
  qk_nope_head_dim=10,
  qk_rope_head_dim=8,
  v_head_dim=12,
)
T5_SMALL = dict(
  d_model=32,
  d_ff=48,
  d_kv=12,
  num_layers=3,
  num_heads=4,
  vocab_size=61,
  decoder_start_token_id=0,
)
CASES = {
  "gpt2": dict(n_embd=32, n_layer=3, n_head=4, n_positions=64, vocab_size=61),
  "llama": SMALL | dict(tie_word_embeddings=True, rms_norm_eps=1e-5),
  "llama3": SMALL
  | dict(
    model_type="llama",
    rope_theta=500.0,
    rope_scaling=dict(
      rope_type="llama3",
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=16,
    ),
  ),
  "linear": SMALL
  | dict(
    model_type="llama",
    head_dim=12,
    rope_scaling=dict(rope_type="linear", factor=2.0),
  ),
  "yarn": SMALL
  | dict(
    model_type="qwen2",
    rope_scaling=dict(
      rope_type="yarn", factor=4.0, original_max_position_embeddings=16
    ),
  ),
  "dynamic": SMALL
  | dict(
    model_type="llama", rope_scaling=dict(rope_type="dynamic", factor=2.0)
  ),
  "longrope": SMALL
  | dict(
    model_type="phi3",
    pad_token_id=0,
    original_max_position_embeddings=48,
    rope_scaling=dict(
      rope_type="longrope",
      short_factor=[1.0, 1.25, 2.0, 3.0],
      long_factor=[1.0, 2.0, 5.0, 9.0],
    ),
  ),
  "mistral": SMALL | dict(sliding_window=5),
  "qwen2": SMALL,
  "phi3": SMALL | dict(sliding_window=5, pad_token_id=0),
  "qwen3": SMALL | dict(head_dim=16),
  "qwen3_moe": SMALL
  | dict(
    head_dim=16,
    moe_intermediate_size=24,
    num_experts=4,
    num_experts_per_tok=2,
    norm_topk_prob=True,
  ),
  "qwen3_moe_plain": SMALL
  | dict(
    model_type="qwen3_moe",
    head_dim=16,
    moe_intermediate_size=24,
    num_experts=4,
    num_experts_per_tok=2,
    norm_topk_prob=False,
  ),
  "olmo2": SMALL,
  "gpt_neox": NEOX,
  "gpt_neox_in_turn": NEOX
  | dict(
    model_type="gpt_neox",
    use_parallel_residual=False,
    rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5),
  ),
  "deepseek_v2": DEEPSEEK,
  "deepseek_v2_queries": DEEPSEEK
  | dict(
    model_type="deepseek_v2",
    q_lora_rank=20,
    first_k_dense_replace=0,
    routed_scaling_factor=2.5,
    rope_scaling=dict(
      rope_type="yarn",
      factor=4.0,
      mscale=0.7,
      mscale_all_dim=0.7,
      original_max_position_embeddings=16,
    ),
  ),
  "deepseek_v2_groups": DEEPSEEK
  | dict(
    model_type="deepseek_v2",
    topk_method="group_limited_greedy",
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_group=4,
    topk_group=2,
  ),
  "gemma2": SMALL
  | dict(
    head_dim=16,
    query_pre_attn_scalar=10,
    sliding_window=5,
    attn_logit_softcapping=4.0,
    final_logit_softcapping=3.0,
  ),
  "gemma3_text": SMALL
  | dict(
    head_dim=16,
    query_pre_attn_scalar=16,
    sliding_window=5,
    num_hidden_layers=4,
    layer_types=["sliding_attention"] * 2
    + ["full_attention", "sliding_attention"],
  ),
  "bert": BERT,
  "bert_bare": BERT | dict(model_type="bert"),
  "t5": T5_SMALL | dict(num_decoder_layers=2),
  "bart": dict(
    d_model=32,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    encoder_layers=3,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    max_position_embeddings=64,
    vocab_size=61,
    pad_token_id=1,
    decoder_start_token_id=0,
    forced_eos_token_id=None,
  ),
  "marian": dict(
    d_model=32,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    encoder_layers=3,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    max_position_embeddings=64,
    vocab_size=61,
    pad_token_id=1,
    eos_token_id=2,
    bos_token_id=3,
    decoder_start_token_id=0,
    forced_eos_token_id=None,
    scale_embedding=True,
    activation_function="swish",
  ),
  "t5_gated": T5_SMALL
  | dict(
    model_type="t5",
    d_ff=64,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
  ),
  "roberta": ROBERTA,
  "roberta_bare": ROBERTA | dict(model_type="roberta"),
  "modernbert": MODERNBERT,
  "modernbert_bare": MODERNBERT | dict(model_type="modernbert"),
  "mixtral": SMALL
  | dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
}
# What opens a model_type; AutoModelForCausalLM where it is not here.
MASKED = "AutoModelForMaskedLM"
AUTO = {
  **dict.fromkeys(("bert", "roberta", "modernbert"), MASKED),
  **dict.fromkeys(("t5", "bart", "marian"), "AutoModelForSeq2SeqLM"),
}
NUM_TOKENS, NUM_NEW = 20, 32


# The larger weights are, the further rounding to bfloat16 carries.
HALF_STD = 0.06


def draw_half(case: str, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """Returns what is then rounded to bfloat16.

  Gemma 3 stores scales less one; its queries and keys, scaled by two, would
  have scores four times as large.
  """
  mean = 0 if case.startswith("gemma3") else 1
  return draw(shapes, std=HALF_STD, mean=mean)


def draw(
  shapes: dict[str, list[int]],
  seed: int = 0,
  std: float = 0.3,
  mean: float = 1,
) -> dict[str, np.ndarray]:
  """Returns float32 tensors; `mean` is that of the scales of norms."""
  rng = np.random.default_rng(seed)
  found = {}
  for name in sorted(shapes):
    array = rng.normal(0, std, shapes[name]).astype(np.float32)
    is_norm = "norm" in name.lower() or ".ln_" in name
    is_scale = is_norm and name.endswith("weight")
    found[name] = array + mean if is_scale else array
  return found


def tokens_of(vocab_size: int) -> np.ndarray:
  return np.random.default_rng(1).integers(0, vocab_size, (1, NUM_TOKENS))


def targets_of(vocab_size: int) -> np.ndarray:
  """Returns what a decoder reads beside a source; 0 begins it."""
  ids = np.random.default_rng(2).integers(0, vocab_size, (1, NUM_TOKENS))
  return ids * (np.arange(NUM_TOKENS) > 0)


def logits_of(model, *args, **given):
  """Returns the logits; of a model without a head, by its table of tokens."""
  out = model(*args, **given)
  if "logits" in out:
    return out.logits
  return out.last_hidden_state @ model.get_input_embeddings().weight.T


def types_of(config: dict) -> np.ndarray | None:
  """Returns the kinds of tokens_of, where a model tells several apart."""
  if config.get("type_vocab_size", 1) < 2:
    return None
  return (np.arange(NUM_TOKENS) >= 12)[None].astype(np.int64)


def main() -> None:
  import tempfile

  import safetensors.torch
  import torch
  import transformers

  path = HERE / "golden.json"
  golden = json.loads(path.read_text()) if sys.argv[1:] else {}
  for case in sys.argv[1:] or CASES:
    options = dict(CASES[case])
    word = options.pop("model_type", case)
    is_bare = case.endswith("_bare")
    name = AUTO.get(word, "AutoModelForCausalLM")
    auto = getattr(transformers, "AutoModel" if is_bare else name)
    config = transformers.AutoConfig.for_model(word, **options)
    config._attn_implementation = "eager"
    model = auto.from_config(config).float().eval()
    with tempfile.TemporaryDirectory() as folder:
      model.save_pretrained(folder)
      weights = pathlib.Path(folder) / "model.safetensors"
      shapes = {
        name: list(tensor.shape)
        for name, tensor in safetensors.torch.load_file(weights).items()
      }
      left_out = ["pooler"] * is_bare + ["final_logits_bias"] * (word == "bart")
      for name in list(shapes):
        if any(part in name for part in left_out):
          del shapes[name]
      if case == "t5_gated":  # transformers 5 ties what it makes
        shapes["lm_head.weight"] = shapes["shared.weight"]
      save, rounded = safetensors.torch.save_file, {}
      for k, v in draw_half(case, shapes).items():
        rounded[k] = torch.from_numpy(v).bfloat16().float()
      save(rounded, weights, {"format": "pt"})
      half = auto.from_pretrained(folder, attn_implementation="eager")
      new = {k: torch.from_numpy(v) for k, v in draw(shapes).items()}
      save(new, weights, {"format": "pt"})
      model = auto.from_pretrained(folder, attn_implementation="eager")
      written = json.loads((pathlib.Path(folder) / "config.json").read_text())
    ids = torch.from_numpy(tokens_of(config.vocab_size))
    given, types = {}, types_of(written)
    if types is not None:
      given["token_type_ids"] = torch.from_numpy(types)
    if word == "roberta":  # whose positions skip the token of padding
      given["position_ids"] = 2 + torch.arange(NUM_TOKENS)[None]
    if written.get("is_encoder_decoder"):
      given["decoder_input_ids"] = torch.from_numpy(
        targets_of(config.vocab_size)
      )
    with torch.no_grad():
      logits = logits_of(model, ids, **given)[0, -4:].double().numpy()
      new = None
      if AUTO.get(word) != MASKED:
        made = model.generate(
          ids[:, :7],
          max_new_tokens=NUM_NEW,
          min_new_tokens=NUM_NEW,
          do_sample=False,
          eos_token_id=None,
        )
        new = made[0, -NUM_NEW:].tolist()
      exact = logits_of(half, ids, **given)[0, -4:].double().numpy()
      near = logits_of(half.bfloat16(), ids, **given)[0, -4:]
      near = near.double().numpy()
      error = np.abs(near - exact).max()
    golden[case] = {
      "config": written,
      "shapes": shapes,
      "logits": np.round(logits, 6).tolist(),
      "greedy": new,
      # Of weights in bfloat16, computed in float32; and how far off the largest
      # logit transformers is in bfloat16.
      "half": np.round(exact, 4).tolist(),
      "half_error": round(error / np.abs(exact).max(), 4),
    }
    print(case, np.abs(logits).max(), new)
  path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
  main()
