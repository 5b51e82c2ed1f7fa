"""The models: `build_model` builds one from its config.

The rest of the project uses only this package's interface: abstract parameters
with their declarations, and pure functions of parameters and tokens. The Linen
modules stay inside the package.
"""

from gpt_jax.config import AdapterConfig, InputError, ModelConfig
from gpt_jax.models import attend
from gpt_jax.models.decoder import Decoder
from gpt_jax.models.encoder import Encoder
from gpt_jax.models.encoder_decoder import EncoderDecoder
from gpt_jax.models.layers import HEADS as HEADS
from gpt_jax.models.model import Model as Model

# The Linen module of the whole model, by option of model.family.
FAMILIES = {
  "decoder": Decoder,
  "encoder": Encoder,
  "encoder_decoder": EncoderDecoder,
}


def build_model(
  config: ModelConfig,
  rules: str = "standard",
  platform: str = "cpu",
  weights: str = "full",
  adapter: AdapterConfig | None = None,
) -> Model:
  """Returns the model of a config whose vocab_size is known.

  Args:
    rules: key of sharding.RULES.
    platform: cpu, gpu or tpu: the devices that the model will run on.
    weights: option of config.WEIGHTS, the format for decoding.
    adapter: adapter section of the config; None, or an empty rank, gives a
      model without adapters.

  Raises:
    InputError: model.attention names a kernel of another platform, or weights
      is int8 or int4 and the model has experts.
  """
  attend.check(config, platform)
  if weights != "full" and config.num_experts is not None:
    raise InputError(
      f"weights in {weights} are for models without experts, and "
      f"model.num_experts is {config.num_experts}; leave them full"
    )
  module = FAMILIES[config.family]
  if adapter is not None and not adapter.rank.parts:
    adapter = None
  return Model(module, config, rules, platform, weights, adapter)


def check_objective(family: str, objective: str) -> None:
  """Raises InputError where a family cannot be trained with an objective.

  Args:
    family: option of model.family.
    objective: option of data.objective.
  """
  able = FAMILIES[family].OBJECTIVES
  if objective not in able:
    raise InputError(
      f"data.objective is {objective} and model.family is {family}, which can "
      f"be trained with {' or '.join(able)} only; change one of them"
    )
