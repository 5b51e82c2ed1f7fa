"""Numbers of published config.json files give the published counts."""

import math
import time

import jax
import pytest

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.deploy.hf import stated
from gpt_jax.deploy.hf.importing import OBJECTIVES
from gpt_jax.models import build_model


def gpt2(width: int, layers: int, heads: int) -> dict:
  sizes = dict(n_embd=width, n_layer=layers, n_head=heads)
  return sizes | dict(model_type="gpt2", n_positions=1024, vocab_size=50257)


def llama(width, mlp, layers, heads, kv_heads, vocab, word="llama", **others):
  return dict(
    model_type=word,
    hidden_size=width,
    intermediate_size=mlp,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    vocab_size=vocab,
    max_position_embeddings=4096,
    **others,
  )


BERT = dict(
  model_type="bert",
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  max_position_embeddings=512,
  vocab_size=30522,
)
ROBERTA = BERT | dict(
  model_type="roberta",
  max_position_embeddings=514,
  type_vocab_size=1,
  vocab_size=50265,
)
MODERNBERT = BERT | dict(
  model_type="modernbert",
  intermediate_size=1152,
  num_hidden_layers=22,
  max_position_embeddings=8192,
  vocab_size=50368,
)
PYTHIA = BERT | dict(
  model_type="gpt_neox", vocab_size=50304, max_position_embeddings=2048
)
DEEPSEEK = llama(2048, 10944, 27, 16, 16, 102400, "deepseek_v2") | dict(
  moe_intermediate_size=1408,
  n_routed_experts=64,
  n_shared_experts=2,
  num_experts_per_tok=6,
  first_k_dense_replace=1,
  kv_lora_rank=512,
  q_lora_rank=None,
  rope_scaling=dict(
    type="yarn",
    factor=40,
    mscale=0.707,
    mscale_all_dim=0.707,
    beta_fast=32,
    beta_slow=1,
    original_max_position_embeddings=4096,
  ),
)
T5 = dict(
  model_type="t5",
  d_model=768,
  d_kv=64,
  num_layers=12,
  num_heads=12,
  vocab_size=32128,
)
MISTRAL = llama(4096, 14336, 32, 32, 8, 32000)
QWEN3 = dict(word="qwen3", head_dim=128)
GEMMA3 = dict(word="gemma3_text", head_dim=256, sliding_window=512)
MODELS = {
  "GPT-2 124M": (gpt2(768, 12, 12), 124_439_808),
  "GPT-2 medium": (gpt2(1024, 24, 16), 354_823_168),
  "GPT-2 XL": (gpt2(1600, 48, 25), 1_557_611_200),
  "Llama 2 7B": (llama(4096, 11008, 32, 32, 32, 32000), 6_738_415_616),
  "Llama 2 70B": (llama(8192, 28672, 80, 64, 8, 32000), 68_976_648_192),
  "Llama 3 8B": (llama(4096, 14336, 32, 32, 8, 128256), 8_030_261_248),
  "Llama 3.2 1B": (
    llama(2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True),
    1_235_814_400,
  ),
  "TinyLlama 1.1B": (llama(2048, 5632, 22, 32, 4, 32000), 1_100_048_384),
  "SmolLM 135M": (
    llama(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
    134_515_008,
  ),
  "BERT base": (BERT, 109_514_298),
  "BERT base with its pooler": (
    BERT | dict(architectures=["BertModel"]),
    109_482_240,
  ),
  # Without the two rows of positions that are none.
  "RoBERTa base": (ROBERTA, 124_697_433 - 2 * 768),
  "ModernBERT base": (MODERNBERT, 149_655_232),
  "T5 base": (T5 | dict(d_ff=3072), 222_903_552),
  "T5 1.1 base": (
    T5
    | dict(feed_forward_proj="gated-gelu", d_ff=2048)
    | dict(tie_word_embeddings=False),
    247_577_856,
  ),
  "Mistral 7B": (MISTRAL | dict(model_type="mistral"), 7_241_732_096),
  "Mixtral 8x7B": (MISTRAL | dict(model_type="mixtral"), 46_702_792_704),
  "Qwen2.5 0.5B": (
    llama(896, 4864, 24, 14, 2, 151936, "qwen2", tie_word_embeddings=True),
    494_032_768,
  ),
  "Qwen2.5 7B": (
    llama(3584, 18944, 28, 28, 4, 152064, "qwen2"),
    7_615_616_512,
  ),
  "Phi-3 mini": (
    llama(3072, 8192, 32, 32, 32, 32064, "phi3", sliding_window=2047),
    3_821_079_552,
  ),
  "Qwen3 0.6B": (
    llama(1024, 3072, 28, 16, 8, 151936, tie_word_embeddings=True, **QWEN3),
    596_049_920,
  ),
  "Qwen3 8B": (llama(4096, 12288, 36, 32, 8, 151936, **QWEN3), 8_190_735_360),
  "Qwen3 30B-A3B": (
    llama(2048, 6144, 48, 32, 4, 151936, **QWEN3 | dict(word="qwen3_moe"))
    | dict(norm_topk_prob=True),
    30_532_122_624,
  ),
  "Pythia 160M": (PYTHIA, 162_322_944),
  "OLMo 2 1B": (
    llama(2048, 8192, 16, 16, 16, 100352, "olmo2"),
    1_484_916_736,
  ),
  "OLMo 2 7B": (
    llama(4096, 11008, 32, 32, 32, 100352, "olmo2"),
    7_298_617_344,
  ),
  "DeepSeek-V2-Lite": (DEEPSEEK, 15_706_484_224),
  "DeepSeek-V2": (
    llama(5120, 12288, 60, 128, 128, 102400, "deepseek_v2")
    | dict(
      moe_intermediate_size=1536,
      n_routed_experts=160,
      n_shared_experts=2,
      num_experts_per_tok=6,
      first_k_dense_replace=1,
      kv_lora_rank=512,
      q_lora_rank=1536,
      topk_method="group_limited_greedy",
      n_group=8,
      topk_group=3,
      routed_scaling_factor=16.0,
    ),
    235_741_434_880,
  ),
  "Gemma 2 2B": (
    llama(2304, 9216, 26, 8, 4, 256000, "gemma2", head_dim=256),
    2_614_341_888,
  ),
  "Gemma 3 1B": (llama(1152, 6912, 26, 4, 1, 262144, **GEMMA3), 999_885_952),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_published_config_gives_the_published_count(name):
  theirs, count = MODELS[name]
  began = time.process_time()
  sizes = stated.Sizes(10**6, 10**6)
  values = cli.load_config("configs/base.py", {})
  values.model.update(stated.read_model(theirs, sizes, name))
  values.model.pooler = name.endswith("with its pooler")
  values.data.objective = OBJECTIVES[values.model.family]
  values.model.vocab_multiple = 1
  config = config_lib.freeze(values)
  model = build_model(config.model, config.mesh.rules)
  shapes, _ = model.abstract_params()
  found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  assert found == count
  assert time.process_time() - began < 2


@pytest.mark.parametrize(
  "variant, name", [("v1.0", "T5 base"), ("base", "T5 1.1 base")]
)
def test_configs_of_t5_are_what_the_hub_states(variant, name):
  sizes = stated.Sizes(10**6, 10**6)
  values = stated.read_model(MODELS[name][0], sizes, name)
  model = config_lib.freeze(
    cli.load_config(f"configs/t5.py:{variant}", {})
  ).model
  here = vars(model) | {
    "head_dim": config_lib.head_dim(model),
    "num_encoder_layers": model.num_encoder_layers or model.num_layers,
  }
  assert {key: here[key] for key in values} == values
  assert {"scaled_readout", "tied_embeddings", "mlp", "max_len"} <= set(values)


def read_small(word: str, **keys) -> dict:
  """Returns what is read of a small config.json with these keys."""
  config = {
    "model_type": word,
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "max_position_embeddings": 64,
  }
  sizes = stated.Sizes(1000, 1024)
  return stated.read_model(config | keys, sizes, "config.json")


@pytest.mark.parametrize(
  "word,key,ours,value",
  [
    ("llama", "num_key_value_heads", "num_kv_heads", None),
    ("mistral", "num_key_value_heads", "num_kv_heads", 8),
    ("mixtral", "num_key_value_heads", "num_kv_heads", 8),
    ("mixtral", "rms_norm_eps", "norm_eps", 1e-5),
    ("mixtral", "rope_theta", "rope_theta", 1e6),
    ("phi3", "rms_norm_eps", "norm_eps", 1e-5),
    ("olmo2", "rms_norm_eps", "norm_eps", 1e-5),
    ("qwen2", "num_key_value_heads", "num_kv_heads", 32),
    ("qwen3", "num_key_value_heads", "num_kv_heads", 32),
    ("qwen3", "head_dim", "head_dim", 128),
    ("qwen3_moe", "num_key_value_heads", "num_kv_heads", 4),
    ("gemma2", "num_key_value_heads", "num_kv_heads", 4),
    ("gemma3_text", "head_dim", "head_dim", 256),
    ("gemma3_text", "rope_theta", "rope_theta", 1e6),
  ],
)
def test_a_key_that_is_missing_has_the_value_that_its_class_takes(
  word, key, ours, value
):
  own = 0.01 if key == "rms_norm_eps" else 64
  assert read_small(word, sliding_window=32, **{key: own})[ours] == own
  assert read_small(word, sliding_window=32).get(ours) == value


@pytest.mark.parametrize(
  "word,stated_here,ours,value",
  [
    ("gpt_neox", dict(partial_rotary_factor=0.75), "rope_frac", 0.25),
    ("gpt_neox", dict(rotary_pct=0.5), "rope_frac", 0.5),
    ("gpt_neox", dict(rope_theta=77.0), "rope_theta", 10_000.0),
    ("gpt_neox", dict(rotary_emb_base=77), "rope_theta", 77.0),
    ("modernbert", dict(rope_theta=77.0), "rope_theta", 160_000.0),
    ("modernbert", dict(global_rope_theta=77.0), "rope_theta", 77.0),
  ],
)
def test_a_key_that_a_class_does_not_read_changes_nothing(
  word, stated_here, ours, value
):
  assert read_small(word, **stated_here)[ours] == value


# {model_type: (keys that it needs beside those of read_small, names of keys
# that transformers takes for them)}
BY_NAMES = {
  "gpt2": (
    {},
    {
      "hidden_size": "n_embd",
      "num_hidden_layers": "n_layer",
      "num_attention_heads": "n_head",
      "max_position_embeddings": "n_positions",
    },
  ),
  "mixtral": ({}, {"num_experts": "num_local_experts"}),
  "qwen3_moe": ({}, {"num_local_experts": "num_experts"}),
  "deepseek_v2": (
    dict(num_experts_per_tok=2, q_lora_rank=32, moe_intermediate_size=64),
    {"num_experts": "n_routed_experts"},
  ),
  "t5": (
    dict(d_ff=64),
    {
      "hidden_size": "d_model",
      "num_attention_heads": "num_heads",
      "num_hidden_layers": "num_layers",
      "head_dim": "d_kv",
    },
  ),
  "bart": (
    dict(encoder_ffn_dim=64, decoder_ffn_dim=64, decoder_layers=2)
    | dict(decoder_attention_heads=32),
    {
      "hidden_size": "d_model",
      "num_hidden_layers": "encoder_layers",
      "num_attention_heads": "encoder_attention_heads",
    },
  ),
}


@pytest.mark.parametrize("word", BY_NAMES)
def test_a_key_can_have_the_name_that_transformers_takes_for_it(word):
  more, names = BY_NAMES[word]
  plain = read_small(word, **more, **dict.fromkeys(names, 32))
  own = dict.fromkeys([*names, *names.values()])
  for name, theirs in names.items():
    keys = own | more | dict.fromkeys(names, 32)
    assert read_small(word, **keys | {name: None, theirs: 32}) == plain
    with pytest.raises(InputError, match=f"has {theirs} 32 and {name} 16"):
      read_small(word, **keys | {name: 16, theirs: 32})


def test_a_t5_has_as_many_layers_on_both_sides_unless_it_says_so():
  sizes = dict(d_model=32, d_ff=64, d_kv=8, num_heads=4, num_layers=3)
  sizes |= dict.fromkeys(["hidden_size", "num_attention_heads"])
  sizes |= dict(num_hidden_layers=None)
  for own in ({}, dict(num_decoder_layers=None), dict(num_decoder_layers=3)):
    assert read_small("t5", **sizes | own)["num_layers"] == 3
  assert read_small("t5", **sizes, num_decoder_layers=2)["num_layers"] == 2


@pytest.mark.parametrize("word", ["gemma2", "gemma3_text", "modernbert"])
def test_a_model_may_have_no_local_layer(word):
  kinds = ["full_attention"] * 2
  read = read_small(word, sliding_window=32, layer_types=kinds)
  assert read["sliding_window"] is None and "layer_pattern" not in read
  assert "local_rope_theta" not in read
  values = cli.load_config("configs/base.py", {})
  defaults = config_lib.freeze(values).model
  values.model.update(read)
  values.data.seq_len = 64
  values.data.objective = OBJECTIVES[values.model.family]
  model = config_lib.freeze(values).model
  written = stated.write_model(stated.choose(model, defaults), model)
  assert written["model_type"] == word and written["layer_types"] == kinds
  # A number that their class computes with, and no layer reads.
  windows = "sliding_window", "local_attention"
  assert [written[key] for key in windows if key in written] == [128]
  again = stated.read_model(written, stated.Sizes(1000, 1024), "config.json")
  again = {k: v for k, v in again.items() if v is not None}
  assert again == {k: v for k, v in read.items() if v is not None}


@pytest.mark.parametrize(
  "word,key,value",
  [
    ("llama", "hidden_act", "swish"),
    ("gemma2", "hidden_activation", "gelu_new"),
    ("gemma2", "hidden_activation", "gelu_fast"),
    ("gpt_neox", "hidden_act", "gelu_python"),
  ],
)
def test_an_activation_is_known_by_all_its_names(word, key, value):
  assert read_small(word, **{key: value}) == read_small(word)
  with pytest.raises(InputError, match=f"has {key} 'quick_gelu'"):
    read_small(word, **{key: "quick_gelu"})


def test_scores_are_scaled_only_where_rope_is():
  sizes = stated.Sizes(100_000, 1 << 20)
  rope = {"factor": 4.0, "mscale_all_dim": 0.7, "rope_theta": 1e4}
  read = lambda kind: stated.read_model(
    DEEPSEEK | {"rope_scaling": rope | {"rope_type": kind}},
    sizes,
    "config.json",
  )
  assert read("default").get("attn_scale") is None
  assert read("linear")["attn_scale"] == pytest.approx(1.0970406**2 / 192**0.5)


def test_a_marian_without_an_activation_is_refused():
  config = dict(model_type="marian", is_encoder_decoder=True, d_model=32)
  for side in ("encoder", "decoder"):
    config |= {f"{side}_layers": 2, f"{side}_ffn_dim": 48}
    config |= {f"{side}_attention_heads": 4}
  config |= dict(vocab_size=61, activation_function="swish")
  sizes = stated.Sizes(1000, 1024)
  assert stated.read_model(config, sizes, "config.json")["mlp"] == "silu"
  del config["activation_function"]
  with pytest.raises(InputError, match="has no activation_function"):
    stated.read_model(config, sizes, "config.json")
