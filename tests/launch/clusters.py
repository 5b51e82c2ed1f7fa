"""A house in which sbatch, gcloud and kubectl are stubs: no cluster is reached.

The stubs write down their arguments. That of gcloud has hosts, folders on which
it really runs what ssh brings.
"""

import json
import pathlib
import shutil
import subprocess
import sys

from harness import ROOT
from houses import STUB, House

PLACES = ("launch/slurm.sh", "launch/tpu_vm.sh", "launch/gke.sh")
FILES = (*PLACES, "launch/host.sh", "launch/gke.yaml")
TOOLS = (
  "printf",
  "wc",
  "tr",
  "git",
  "nohup",
  "xargs",
  "basename",
  "env",
  "mkfifo",
)
NOTE = """
import json, os, sys
name, *words = sys.argv[1:]
with open(os.environ["STUB_LOG"] + ".json", "a") as log:
  log.write(json.dumps([name, *words]) + "\\n")
"""
SBATCH = """#!/bin/bash
note sbatch "$GPT_JAX_PYTHON" "$@"
echo Submitted batch job 7
"""
KUBECTL = """#!/bin/bash
note kubectl "$@"
cat >"$STUB_LOG.stdin"
"""
# describe answers the lines of $STUB_LOG.states in turn, and the last for ever.
GCLOUD = r"""#!/bin/bash
note gcloud "$@"
states=$STUB_LOG.states
hosts=("$STUB_HOSTS"/*)
for word in "$@"; do
  case $word in
    --worker=0) hosts=("${hosts[0]}") ;;
    --command=*) command=${word#*=} ;;
  esac
done
case "$4 $5" in
  *' describe' | 'describe '*)
    read -r state <"$states"
    [[ $(wc -l <"$states") -eq 1 ]] || sed -i 1d "$states"
    echo "$state" ;;
  'scp '*) for host in "${hosts[@]}"; do cp "$5" "$host/${6#*:}"; done ;;
  'ssh '*)
    for host in "${hosts[@]}"; do
      (cd "$host" && HOME=$host STUB_LOG=$host/stub.log bash -c "$command")
    done ;;
esac
"""
HOSTNAME = '#!/bin/bash\nbasename "$HOME"\n'
# A trainer that runs until it is told to stop.
RUNS = "if [[ -n ${STUB_RUNS:-} && $1 == gpt_jax.train ]]; then "
RUNS += 'trap "exit 75" TERM; '
RUNS += "while :; do sleep 0.05; done; fi ;;\nesac"
TRAINER = STUB.replace("|| exit 7 ;;\nesac", f"|| exit 7\n    {RUNS}")


class Places(House):
  """A repo with a commit, and stubs of what talks to clusters."""

  def __init__(self, folder: pathlib.Path):
    super().__init__(folder)
    for name in FILES:
      shutil.copy(ROOT / name, self.root / name)
    for tool in TOOLS:
      (self.bin / tool).symlink_to(shutil.which(tool))
    self.add_python("python3", "3.11", TRAINER)
    # Not python3 from PATH: it may be a shim, which needs that PATH.
    note = f"#!{sys.executable}\n{NOTE}"
    stubs = {"note": note, "sbatch": SBATCH, "kubectl": KUBECTL}
    for name, text in {**stubs, "gcloud": GCLOUD, "hostname": HOSTNAME}.items():
      (self.bin / name).write_text(text)
      (self.bin / name).chmod(0o755)
    self.hosts = folder / "hosts"
    for name in ("host-0", "host-1"):
      (self.hosts / name).mkdir(parents=True)
    self.states("ACTIVE")
    git = ["git", "-C", self.root, "-c", "user.name=a", "-c", "user.email=a@b"]
    (self.root / ".gitignore").write_text("/.venv/\n/runs/\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a commit"]):
      subprocess.run([*git, *words], check=True)

  def states(self, *states: str) -> None:
    pathlib.Path(f"{self.log_file}.states").write_text(
      "".join(state + "\n" for state in states)
    )

  def start(self, script, *words, **env):
    env = {"STUB_HOSTS": str(self.hosts), "HOME": str(self.hosts), **env}
    env.setdefault("TMPDIR", str(self.log_file.parent))
    return super().start(script, *words, **env)

  def call(self, script: str, *words: str, code=0, **env: str):
    """Returns (stdout, stderr, the commands that reached a stub)."""
    noted = pathlib.Path(f"{self.log_file}.json")
    noted.unlink(missing_ok=True)
    out, err, _ = self.launch(*words, script=script, code=code, **env)
    lines = noted.read_text().splitlines() if noted.exists() else []
    return out, err, [json.loads(line) for line in lines]

  def stdin(self) -> str:
    return pathlib.Path(f"{self.log_file}.stdin").read_text()


TPU = ["gpt-x", "--zone=us-z"]
TYPE = "--type=v5litepod-16"
ARGS = ["--config=configs/tiny.py", "--config.sample.prompt=def f'\"$x"]
ARGS += ["--workdir=/mnt/run"]
GKE = ["gpt-x", "--type=tpu-v5-lite-podslice", "--topology=4x4"]
GKE += ["--image=eu-docker.pkg.dev/p/r/g:1", "--claim=nfs"]
GKE_ARGS = ["--config=configs/tiny.py", "--workdir=/runs/x"]
