"""The complete configuration: every key once, with its reason or unit.

Config files change these values and add none; the command line changes them
again (--config.section.key=value). `--help` prints this file's comments and the
options of a key, which gpt_jax/config/schema.py declares with its type. A key
that may be None is a placeholder. Nothing else here holds a default.
"""

from ml_collections.config_dict import ConfigDict, placeholder


def get_config() -> ConfigDict:
  config = ConfigDict()

  # Root of all randomness: parameters, data order, dropout, samples.
  config.seed = 0

  data = config.data = ConfigDict()
  # Where text comes from: interpreter | text:GLOB | jsonl:GLOB[#FIELD], csv:,
  # tsv: and parquet: alike, warc:GLOB, pairs:GLOB[#SOURCE#TARGET],
  # labelled:GLOB[#TEXT[#TEXT]#LABEL], chat:GLOB, preference:GLOB,
  # tfds:NAME[:SPLIT] or hf:NAME[@REVISION][:[CONFIG:]SPLIT][#FIELD]; several
  # with weights make a mixture: "0.7*text:a/*.txt,0.3*interpreter".
  data.source = "interpreter"
  # How the weights of a mixture are read. None: shares of the sequences; T: a
  # source's share is weight * size^(1/T), so that with 1 weights count epochs.
  data.temperature = placeholder(float)
  # Other weights from given steps on, as in "1,3@1000+1,9@2000".
  data.curriculum = "none"
  # Another source for validation; None holds back part of `source`.
  data.valid_source = placeholder(str)
  # What is held back: whole documents, by a hash of their names (document) or
  # of their text without white space and case (content, which keeps copies on
  # one side); or the tail of every document, which then have no separators.
  data.split = "document"
  # Fraction held back for validation, between 0 and 1.
  data.valid_frac = 0.1
  # Cuts text into tokens. bpe is trained on the corpus; PATH of gpt2 is the
  # folder or file of the GPT-2 vocabulary, of hf a tokenizer.json.
  data.tokenizer = "bytes"
  # Where prepared token shards are kept and found again; may be an address
  # (docs/places.md), as the GLOB of a source and train.init_from may.
  data.dir = "prepared"
  # When files of a prepared set are checked against their hashes. open: always.
  # once: those of 64 MiB and more only when new to this machine or changed.
  data.verify = "once"
  # Tokens in a training sequence (T).
  data.seq_len = 256
  # Tokens in a source (S) where an encoder reads it; None means seq_len.
  data.source_len = placeholder(int)
  # Whether sequences run on across documents (stream), or attention and the
  # loss stop at their borders (documents). A pair of sequence_to_sequence has
  # its own row (stream), or shares one with as many as fit (documents).
  data.packing = "stream"
  # What is predicted. causal: each token from those before it. prefix_lm: what
  # follows a prefix of random length that sees both ways. masked_lm: random
  # tokens from all others. fill_in_the_middle: each token of documents whose
  # middle is moved to the end. span_corruption: spans that marks stand for,
  # from the rest (T5); ul2: the same in seven forms, from short spans to the
  # whole end (UL2). sequence_to_sequence: the target of a pair from its source.
  # classification: the labels of texts. chat: what the assistant says. dpo,
  # ipo, orpo: the better of two answers; kto: good answers and not bad ones
  # (docs/tuning.md). grpo: the model's own answers, as far as they are right.
  data.objective = "causal"
  # Fraction of a sequence's tokens that masked_lm predicts.
  data.mask_rate = 0.15
  # What it shows in their place: a mask, a random token, or the token itself.
  data.mask_mix = "0.8*mask+0.1*random+0.1*keep"
  # Whether it chooses tokens, or whole words.
  data.mask_unit = "token"
  # Fraction of documents whose middle fill_in_the_middle moves.
  data.fim_rate = 0.5
  # Fraction of these whose suffix stands before the prefix (SPM), not after.
  data.fim_spm_rate = 0.5
  # Whether a middle begins and ends between tokens, or at any character.
  data.fim_unit = "character"
  # Fraction of a sequence's tokens that span_corruption hides.
  data.noise_density = 0.15
  # Mean length of the hidden spans, in tokens.
  data.mean_span_len = 3.0
  # Labels of classification: a text has one class (single), any number of
  # classes (multi), a number, or a class for each of its words.
  data.label = "single"
  # Chat template. Each mark is a token; with :text marks are spelled as plain
  # text, for a tokenizer that lacks them. tokenizer takes the template that
  # came with the tokenizer.
  data.template = "chatml"
  # Reader processes; 0 reads in threads of this process.
  data.num_workers = 0
  # Encryption key of prepared sets and checkpoints: the path of a file of 16 or
  # more random bytes, or "command" for the output of the command in
  # GPT_JAX_KEY_COMMAND; None leaves them readable.
  data.key = placeholder(str)

  model = config.model = ConfigDict()
  # Family of the model: a decoder continues a text, an encoder reads it both
  # ways, an encoder_decoder reads a source both ways and writes a target.
  model.family = "decoder"
  # Blocks (L); of an encoder_decoder, those of its decoder.
  model.num_layers = 4
  # Blocks of its encoder; None means num_layers.
  model.num_encoder_layers = placeholder(int)
  # Residual width (D).
  model.model_dim = 256
  # Query heads (N).
  model.num_heads = 4
  # Key and value heads (K), a divisor of num_heads; None means num_heads.
  model.num_kv_heads = placeholder(int)
  # Width of a head (H); None means model_dim / num_heads.
  model.head_dim = placeholder(int)
  # Latent attention (DeepSeek-V2): keys and values are projected from a vector
  # of this width per token, which decoding caches in their place; there are no
  # biases, and num_kv_heads is num_heads. None is plain attention.
  model.kv_lora_rank = placeholder(int)
  # Width that latent attention compresses queries to; None does not.
  model.q_lora_rank = placeholder(int)
  # Rotated dims of its heads, the last of head_dim. All heads share this part
  # of a key, which is cached too; the other dims have no positions.
  model.qk_rope_head_dim = placeholder(int)
  # Width of its heads' values; None means head_dim.
  model.v_head_dim = placeholder(int)
  # Hidden width of the MLP (F).
  model.mlp_dim = 1024
  # Longest sequence that the model accepts; rows of learned positions.
  model.max_len = 256
  # Tokens that the model can predict (V); None takes the tokenizer's size.
  model.vocab_size = placeholder(int)
  # Embedding rows are padded to this multiple and the padding is masked.
  model.vocab_multiple = 128
  # Normalisation of activations; rmsnorm subtracts no mean.
  model.norm = "layernorm"
  # Normalise a sublayer's input (pre), input and output (sandwich), output
  # alone (output), or the sum after it (post).
  model.norm_placement = "pre"
  # The MLP reads what attention reads, side by side with it (GPT-J, GPT-NeoX).
  model.parallel_residual = False
  # Added to the variance before the square root.
  model.norm_eps = 1e-5
  # Also normalise the embeddings; with pre-norm, in place of the first layer's
  # first norm.
  model.embed_norm = False
  # Whether the encoder before a decoder shares its learned positions, and the
  # norm after them, or has its own (BART). Tokens are always shared.
  model.source_embed = "shared"
  # Multiply the embeddings by the root of the width, before positions.
  model.scaled_embeddings = False
  # Divide what the output matrix reads by the root of the width, as T5 does.
  model.scaled_readout = False
  # How a model knows positions: a table, learned or of sines and cosines in
  # turn or in halves, added to the embeddings; rope, rotated queries and keys;
  # alibi and relative, biases of the scores, which relative learns for each
  # head and bucket of distances, the same in all layers.
  model.position = "learned"
  # Token types that an encoder embeds, such as 2 for pairs of texts, or none.
  model.num_token_types = placeholder(int)
  # Fraction of a head's dims that rope rotates, the first of them.
  model.rope_frac = 1.0
  # Base of the rotary wavelengths.
  model.rope_theta = 10_000.0
  # Base for local layers, which rope_scaling then leaves alone; None: as above.
  model.local_rope_theta = placeholder(float)
  # Stretches the rotary wavelengths for texts longer than trained on; MSCALE of
  # yarn and longrope multiplies sines and cosines.
  model.rope_scaling = "none"
  # Nonlinearity of the MLP; gelu_tanh approximates gelu; glu means a gate.
  model.mlp = "gelu_tanh"
  # Experts (E) in place of every MLP, without biases; None is a plain MLP.
  model.num_experts = placeholder(int)
  # Experts that each token is routed to (A).
  model.experts_per_token = 2
  # Hidden width of each expert; None means mlp_dim.
  model.expert_mlp_dim = placeholder(int)
  # Further experts of the same width, which every token goes through.
  model.num_shared_experts = 0
  # Capacity of an expert, relative to an even share of a sequence's tokens; the
  # last tokens beyond it are dropped. On a mesh, experts then exchange tokens
  # by all-to-all. None: no token is dropped, as in decoding.
  model.expert_capacity_factor = placeholder(float)
  # How the router scores experts; the scores of the chosen weigh their outputs.
  model.router_score = "softmax"
  # Divide these weights by their sum, if there are several.
  model.router_normalized = True
  # Factor of these weights.
  model.router_scale = 1.0
  # Groups of equal size that the experts are divided into, in order.
  model.router_groups = 1
  # A token's experts lie in this many of them, those whose best expert scores
  # highest (DeepSeek-V2 has 3 of 8); None is all.
  model.router_groups_per_token = placeholder(int)
  # Weight of each layer's load-balancing loss in training, over the tokens of a
  # sequence; the loss is 1 where they spread evenly over the experts.
  model.router_balance_weight = 0.01
  # Each expert has a bias that counts only where experts are chosen; a step
  # lowers it by this much if the expert had more than an even share of the
  # batch, else raises it (DeepSeek-V3 has 0.001, with sigmoid). 0: no biases.
  model.router_bias_rate = 0.0
  # Weight of each layer's router z-loss in training, the mean square of
  # log(sum(exp(scores))), which keeps scores small (ST-MoE has 0.001).
  model.router_z_weight = 0.0
  # Biases in projections and, with layernorm, in the norms.
  model.bias = False
  # Biases of queries, keys and values alone, as in Qwen 2; model.bias has all.
  model.qkv_bias = False
  # One matrix both embeds tokens and scores them.
  model.tied_embeddings = True
  # Tokens predicted at each position in training: the next, and each later one
  # by a block of its own after the last layer. Generation uses the next.
  model.num_future_tokens = 1
  # What scores tokens: the output matrix (linear), with a bias (biased), and
  # after a projection, gelu and a norm as in BERT (transform). Or what scores
  # classes: a matrix on the first token after BERT's pooler (first), on the
  # mean of all tokens (mean), on the last (last), or on each, for labels of
  # words (each).
  model.head = "linear"
  # Classes, or numbers, that classification scores; None: those of the data.
  model.num_classes = placeholder(int)
  # An encoder ends with the pooler that a published BERT brings, from which
  # head="first" starts (train.init_from); no other head reads or trains it.
  model.pooler = False
  # Normalise queries and keys (RMS) before scores.
  model.qk_norm = False
  # Over the dims of each head, or of all heads together.
  model.qk_norm_over = "head"
  # Factor of the attention scores; None is 1 / sqrt(head_dim).
  model.attn_scale = placeholder(float)
  # Attention scores pass cap * tanh(score / cap); None leaves them alone.
  model.attn_softcap = placeholder(float)
  # The same for the logits.
  model.logit_softcap = placeholder(float)
  # Positions that a query of a local layer sees: its own and those just before.
  model.sliding_window = placeholder(int)
  # Kinds of layers in order, repeated over the depth, as in 5*local+global,
  # dense+moe or local/dense, a kind of both. What a kind leaves open, and
  # uniform in all layers, follows from the keys: local where there is a window,
  # else global; moe where there are experts, else dense.
  model.layer_pattern = "uniform"
  # Probability of dropping embeddings, attention weights, sublayer outputs.
  model.dropout_rate = 0.0
  # Standard deviation of initial weights; those that write to the residual
  # stream are divided by sqrt(2 L).
  model.init_std = 0.02
  # That of an untied output matrix; None is init_std. With 0 all tokens start
  # equally likely at every width (Yang et al. 2022, D.2).
  model.unembed_init_std = placeholder(float)
  # How learning rates and initial scales depend on the sizes. mup: what is
  # tuned at base_dim transfers to any width; completep: from base_layers also
  # to any depth. Both need adamw or adam.
  model.parametrization = "standard"
  # Width that mup and completep change nothing at; standard ignores these
  # three. The MLP is to grow with the width, and heads in number or width.
  model.base_dim = placeholder(int)
  # Blocks that completep changes nothing at; mup ignores it.
  model.base_layers = placeholder(int)
  # Width of a head at base_dim; None: as here, so that heads grow in number.
  model.base_head_dim = placeholder(int)
  # One compiled block scanned over layers, or every layer compiled.
  model.scan_layers = False
  # What backward recomputes: dots, all but matmul outputs; save, all but the
  # NAMES; offload, the same with the NAMES in the host's memory, where the
  # platform can. NAMES, with + between: block (a block's input), qkv, attn
  # (attention's output), mlp (the input of its nonlinearity). On a CPU it
  # saves memory with scan_layers only.
  model.remat = "none"
  # Kernel of attention: auto chooses by platform, dense computes all scores
  # at once, blocks (in JAX) skips what the mask hides, splash is for TPUs,
  # cudnn and flash (packed documents, soft-caps, any width) for GPUs.
  model.attention = "auto"
  # How attention spans mesh.seq: every device gathers all keys and values, or
  # they pass from device to device in a ring and none ever holds all.
  model.seq_attention = "gather"
  # Type that parameters are stored in.
  model.param_dtype = "float32"
  # Type of activations and matmuls; statistics, softmax and loss stay float32.
  model.compute_dtype = "float32"
  # Type that gradients of matrices are produced in, and summed in over devices.
  model.grad_dtype = "float32"

  adapter = config.adapter = ConfigDict()
  # Train low-rank changes of these matrices alone, and keep the parameters of
  # train.init_from: ranks by path, the last that matches, as in
  # "attn=8,blocks/mlp/*=16" (docs/exchange.md).
  adapter.rank = "none"
  # A change is scaled by this over its rank.
  adapter.alpha = 16.0
  # lora, or dora, which also learns the norm of each output of the sum.
  adapter.kind = "lora"
  # How frozen matrices of layers are held in training: as stored (full), or
  # quantized to int8 or int4, beside which the adapters learn (QLoRA).
  adapter.base = "full"

  distill = config.distill = ConfigDict()
  # Also learn from the logits of a decoder of the same vocabulary: the workdir
  # of its run, or with top_k a folder of stored logits (docs/distillation.md).
  distill.teacher = placeholder(str)
  # Logits per token in that folder, the largest ones; the teacher need not be
  # present then. None: the teacher is run at each step.
  distill.top_k = placeholder(int)
  # What is minimised: forward, KL(teacher || student), or reverse.
  distill.kl = "forward"
  # Divides the logits of both; the divergence is multiplied by its square.
  distill.temperature = 1.0
  # Weight of the divergence in the loss; the plain loss has 1 minus this.
  distill.weight = 0.5

  optim = config.optim = ConfigDict()
  # Rule of the updates; muon updates all but matrices by adamw.
  optim.optimizer = "adamw"
  # Peak learning rate.
  optim.learning_rate = 1e-3
  # Shape of the rate over the steps; wsd is warm-up, stable, decay.
  optim.schedule = "cosine"
  # Steps of linear warm-up.
  optim.warmup_steps = 100
  # Where cosine, linear and wsd end, as a fraction of the peak.
  optim.final_rate_frac = 0.1
  # Fraction of all steps that wsd spends decaying.
  optim.decay_frac = 0.2
  # Decay of the first moment; momentum of sgd and muon. adafactor ignores the
  # betas and eps.
  optim.beta1 = 0.9
  # Decay of the second moment.
  optim.beta2 = 0.95
  # Type that moments are stored in; updates are computed in float32.
  optim.moment_dtype = "float32"
  # Added to the root of the second moment.
  optim.eps = 1e-8
  # Decoupled weight decay per step, times the rate; matrices only, not by adam.
  optim.weight_decay = 0.1
  # Factors of the rate, and so of the decay, by parameter path, the last that
  # matches: "embed=0,blocks/attn/*=0.5"; 0 freezes (docs/exchange.md).
  optim.rates = "none"
  # Gradients are scaled down to this global norm; None leaves them alone.
  optim.clip_norm = placeholder(float)
  # DP-SGD: the gradient of each sequence is clipped to clip_norm alone, and
  # noise of this times clip_norm is added to their sum (docs/security.md).
  optim.noise_multiplier = placeholder(float)
  # The delta for which the run's epsilon is stated: well below 1 / sequences.
  optim.privacy_delta = 1e-5

  train = config.train = ConfigDict()
  # Optimizer steps in the whole run.
  train.num_steps = 1000
  # Sequences in one optimizer step, over all devices and processes.
  train.global_batch_size = 32
  # A ramp of the batch size: "4@100+2@200" is a quarter of the batch for 100
  # steps, then half for 200, then all of it.
  train.batch_ramp = "none"
  # The batch is split into N parts whose gradients are averaged; on a CPU
  # parts of about a thousand tokens stay in its caches.
  train.num_microbatches = 1
  # The loss is computed in N chunks of tokens, or on a mesh of the vocabulary;
  # above 1, the logits of a whole batch never exist.
  train.num_loss_chunks = 1
  # Weight of the z-loss, the mean square of the logarithm of softmax's
  # denominator, which keeps logits from drifting together; 0 has none.
  train.z_loss_weight = 0.0
  # Label smoothing: the part of each target's probability that all tokens share
  # evenly; train/loss and every evaluation stay without it. 0 has none.
  train.label_smoothing = 0.0
  # Preference objectives: factor of the rewards, larger for closer to the
  # reference (0.1 in the DPO paper); for orpo the weight of the odds ratio.
  train.preference_beta = 0.1
  # grpo: answers sampled for each prompt, whose rewards are compared.
  train.group_size = 1
  # Updates from each batch of samples.
  train.updates_per_batch = 1
  # The ratio to the policy that sampled is clipped to 1 - clip_ratio and 1 +
  # clip_ratio (0.2 as in PPO).
  train.clip_ratio = 0.2
  # Weight of the KL divergence from train.init_from, which 0 does not load.
  train.kl_weight = 0.0
  # Decay per step of a moving average of the parameters, which is evaluated too
  # (generate and evaluate read it with --average=ema); None keeps none.
  train.ema_decay = placeholder(float)
  # A line and a row of metrics.jsonl every N steps; 0: of the first and last.
  train.log_every_steps = 10
  # Largest scores and logits, activations and updates by layer, gradients by
  # role, every N steps (one costs about 1.3 steps); 0 never.
  train.telemetry_every_steps = 0
  # Every N steps, look for a device whose copy differs in a bit; 0 never.
  train.check_replicas_every_steps = 0
  # Updates in a row skipped as non-finite or as spikes, before the run stops.
  train.max_nonfinite_steps = 10
  # An update whose gradient norm is this many times the running mean of the
  # norms is skipped as a spike, once 20 updates are done; None skips none.
  train.spike_factor = placeholder(float)
  # Instead of stopping, go back to the last good checkpoint and on with the
  # batches that come next (gpt_jax/training/rollback.py), at most N times.
  train.max_rollbacks = 0
  # Profile N steps once compiled, into the workdir; 0 profiles none.
  train.profile_steps = 0
  # Start from the parameters of this other workdir.
  train.init_from = placeholder(str)
  # Which of its layers a smaller model starts from: as many as there are here.
  train.init_layers = "all"
  # Keep weights zero that are zero in train.init_from: trains a pruned model.
  train.keep_zeros = False
  # Also log to this Weights & Biases project (extra `wandb`).
  train.wandb_project = placeholder(str)

  mesh = config.mesh = ConfigDict()
  # Devices along each axis, slowest links first; one may be -1 (the rest).
  # data: copies of the model, each with its part of the batch.
  mesh.data = -1
  # fsdp: parts of the batch and of every large parameter.
  mesh.fsdp = 1
  # expert: parts of the batch and of the experts.
  mesh.expert = 1
  # seq: parts of the sequence.
  mesh.seq = 1
  # tensor: parts of heads, MLP width and vocabulary.
  mesh.tensor = 1
  # Rule set that maps logical axes to mesh axes.
  mesh.rules = "standard"

  checkpoint = config.checkpoint = ConfigDict()
  # Save every N steps, and always at the end and when interrupted; 0 only then.
  checkpoint.every_steps = 500
  # Newest checkpoints kept.
  checkpoint.keep_last = 2
  # Also keep every checkpoint whose step this divides; None or 0: no others.
  checkpoint.keep_every_steps = placeholder(int)
  # Whether to continue the run in the workdir; auto does if there is one.
  checkpoint.resume = "auto"

  evaluation = config.eval = ConfigDict()
  # Evaluate every N steps; 0 never. The end of a run evaluates the whole set.
  evaluation.every_steps = 250
  # Validation batches in each evaluation during training.
  evaluation.num_batches = 20
  # Tasks of lm-evaluation-harness (extra eval) that belong to each evaluation:
  # names, or files that end in .yaml, with a comma between; None has none.
  evaluation.tasks = placeholder(str)
  # Only the first N questions of each task; None asks all.
  evaluation.task_limit = placeholder(int)

  sample = config.sample = ConfigDict()
  # Write a sample every N steps, and at the end; 0 writes none, and neither do
  # an encoder and a classifier, which continue no text.
  sample.every_steps = 500
  # What the sample continues.
  sample.prompt = "\n"
  # Tokens in the sample.
  sample.num_tokens = 200
  # Softmax temperature; 0 takes the most likely token.
  sample.temperature = 0.8

  return config.lock()
