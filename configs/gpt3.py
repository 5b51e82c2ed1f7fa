"""GPT-3 175b (Brown et al. 2020, table 2.1 and appendix B), for TPU pods.

96 layers, 96 heads of 128, width 12288, 2048 positions; 300 billion tokens in
steps of 3.2 million. The mesh is for two slices of v5p:8x8x16. Each slice has
one copy of the model: every layer's width is split over 8 chips (tensor), and
the state into 128 parts (fsdp).

  python -m gpt_jax.lab.plan --config=configs/gpt3.py --topology=v5p:8x8x16 \
    --slices=2
"""

from configs import gpt2


def get_config():
  config = gpt2.get_config("1558m")
  config.data.seq_len = config.model.max_len = 2048
  config.model.num_layers = 96
  config.model.num_heads = 96
  config.model.model_dim = 12288
  config.model.mlp_dim = 4 * 12288
  config.model.scan_layers = True
  config.model.remat = "full"
  config.optim.learning_rate = 6e-5
  config.optim.warmup_steps = 120
  config.train.num_steps = 95_000
  config.train.global_batch_size = 1536
  config.train.num_microbatches = 1
  config.train.num_loss_chunks = 1
  config.mesh.data = 2
  config.mesh.fsdp = -1
  config.mesh.tensor = 8
  return config
