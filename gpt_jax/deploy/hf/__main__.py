"""Models in and out: python -m gpt_jax.deploy.hf --help."""

import sys

from gpt_jax import cli
from gpt_jax.config import InputError, nearest
from gpt_jax.machine import processes, runtime

VERBS = {
  "import": "make a workdir of a folder of the hub's layout",
  "export": "write a run as a folder that transformers opens",
}


def main(argv: list[str]) -> int:
  if argv[:1] in ([], ["--help"], ["-h"]):
    print("Models of the Hugging Face hub's layout, in and out:")
    for verb, line in VERBS.items():
      print(f"  python -m gpt_jax.deploy.hf {verb}  {line}")
    print("\nEach has --help.")
    return 0
  verb, *rest = argv
  if verb not in VERBS:
    raise InputError(f"unknown command {verb}; {nearest(verb, VERBS)}")
  return _import(rest) if verb == "import" else _export(rest)


def _import(argv: list[str]) -> int:
  parser = cli.build_parser(
    "deploy.hf import",
    "Make a workdir of config.json, safetensors and a tokenizer. generate and "
    "evaluate read it; --config.train.init_from=DIR starts a run from it.",
    needs_config=False,
  )
  parser.add_argument(
    "--from",
    dest="source",
    required=True,
    metavar="DIR",
    help="folder of the model",
  )
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="folder to make"
  )
  parser.add_argument(
    "--tokenizer",
    metavar="KIND",
    help="in place of the folder's: hf:PATH, gpt2:PATH or bytes",
  )
  parser.add_argument(
    "--param_dtype",
    choices=("float32", "bfloat16"),
    help="type of the parameters; the default is that of the tensors",
  )
  parser.add_argument(
    "--adapter",
    metavar="DIR",
    help="folder of a LoRA adapter of this model, as PEFT writes it, to merge",
  )
  args = _parse(parser, argv)
  runtime.start(args.devices)

  from gpt_jax.deploy.hf import importing

  config = importing.import_model(
    args.source, args.workdir, args.tokenizer, args.param_dtype, args.adapter
  )
  print(
    f"{args.workdir} holds the model of {args.source}: "
    f"{config.model.num_layers} layers of width {config.model.model_dim}, "
    f"{config.model.vocab_size} tokens, {config.model.param_dtype}"
  )
  if config.model.rope_scaling.mechanism == "longrope":
    print(
      f"It has {config.model.max_len:,} positions: in a longer text longrope "
      "would turn the first tokens by other angles than those that are cached"
    )
  return 0


def _export(argv: list[str]) -> int:
  parser = cli.build_parser(
    "deploy.hf export",
    "Write a run as config.json, safetensors and a tokenizer, which "
    "AutoModelForCausalLM and AutoTokenizer open by from_pretrained.",
    needs_config=False,
  )
  cli.add_run(parser)
  parser.add_argument(
    "--out", required=True, metavar="DIR", help="folder to make"
  )
  parser.add_argument(
    "--adapter_only",
    action="store_true",
    help="write the adapters of the run alone, as PEFT reads them",
  )
  args = _parse(parser, argv)
  runtime.start(args.devices)

  from gpt_jax.deploy.hf import adapters_out, exporting
  from gpt_jax.runs import workdir

  note = processes.note
  if args.adapter_only:
    opened = workdir.open_adapters(args.workdir, note, args.average, args.step)
    word = adapters_out.export_adapters(*opened, args.out)
    print(f"{args.out} holds the adapters of {args.workdir}, of a {word}")
    return 0
  config, model, params, tokenizer, _ = workdir.open_run(
    args.workdir,
    {},
    note,
    average=args.average,
    step=args.step,
  )
  is_chat = config.data.objective == "chat"
  template = config.data.template if is_chat else None
  word = exporting.export_model(
    model,
    params,
    tokenizer,
    args.out,
    template=template,
    labels=workdir.read_labels(args.workdir),
  )
  print(f"{args.out} holds the model of {args.workdir} as {word}")
  return 0


def _parse(parser, argv: list[str]):
  return cli.parse_flags(parser, argv)


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
