"""The manifest of a run on GKE, and the verbs."""

import json
import re
import shlex

import pytest
import yaml
from clusters import GKE, GKE_ARGS

ODD = "--config.sample.prompt=a \"b\" \\n ${NAME} $(NAME) $$: # 'c'"


def expand(word: str) -> str:
  """Returns what Kubernetes makes of a word of a command."""
  put = lambda m: "$" if m[0] == "$$" else "a variable"
  return re.sub(r"\$\$|\$\(\w+\)", put, word)


def manifest(places, *words: str) -> dict:
  out, _, noted = places.call("launch/gke.sh", "--dry-run", *words)
  assert not noted
  return yaml.safe_load(out)


def test_a_dry_run_on_gke_prints_the_manifest_that_is_then_applied(places):
  words = [*GKE, "--", *GKE_ARGS, ODD]
  out, _, noted = places.call("launch/gke.sh", "--dry-run", *words)
  assert not noted
  _, _, noted = places.call("launch/gke.sh", "--namespace=n", *words)
  assert noted == [["kubectl", "apply", "--namespace=n", "--filename=-"]]
  assert places.stdin() == out


@pytest.mark.parametrize(
  "words, slices, hosts, chips",
  [
    ([], 1, 4, 4),
    (["--slices=3"], 3, 4, 4),
    (["--topology=2x4", "--chips=8"], 1, 1, 8),
    (["--topology=4x4x8"], 1, 32, 4),
    (["--topology=1x1", "--chips=1"], 1, 1, 1),
  ],
)
def test_the_manifest_has_a_job_a_slice_and_a_pod_a_host(
  places, words, slices, hosts, chips
):
  found = manifest(places, *GKE, *words, "--", *GKE_ARGS, ODD)
  assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert found["kind"] == "JobSet" and found["metadata"]["name"] == "gpt-x"
  (replicated,) = found["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  assert replicated["replicas"] == slices
  assert job["parallelism"] == job["completions"] == hosts
  assert job["completionMode"] == "Indexed"
  pod = job["template"]["spec"]
  topology = next((w[11:] for w in words if "topology" in w), "4x4")
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": topology,
  }
  (container,) = pod["containers"]
  resources = container["resources"]
  assert resources["limits"] == resources["requests"]
  assert resources["limits"] == {
    "google.com/tpu": chips,
    "cpu": 8,
    "memory": "32Gi",
  }
  (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
  assert mount == {"name": volume["name"], "mountPath": "/runs"}
  assert volume["persistentVolumeClaim"] == {"claimName": "nfs"}
  assert container["image"] == "eu-docker.pkg.dev/p/r/g:1"
  command = [expand(word) for word in container["command"]]
  assert command == ["python", "-m", "gpt_jax.train", *GKE_ARGS, ODD]


def test_verbs_on_gke_are_those_of_kubectl(places):
  said = {
    "status": [["get", "jobset", "gpt-x"], ["get", "pods"]],
    "logs": [["logs"]],
    "stop": [["patch", "jobset", "gpt-x"]],
    "delete": [["delete", "jobset", "gpt-x"]],
  }
  for verb, starts in said.items():
    words = [verb, "gpt-x", "--namespace=n"]
    out, _, noted = places.call("launch/gke.sh", "--dry-run", *words)
    assert not noted
    _, _, noted = places.call("launch/gke.sh", *words)
    assert noted == [shlex.split(line) for line in out.splitlines()]
    for command, start in zip(noted, starts, strict=True):
      assert command[0] == "kubectl" and command[1 : 1 + len(start)] == start
      assert "--namespace=n" in command
  _, _, noted = places.call("launch/gke.sh", "logs", "gpt-x", "--follow")
  assert "--follow" in noted[0]
  _, _, noted = places.call("launch/gke.sh", "stop", "gpt-x")
  (patch,) = [w for w in noted[0] if w.startswith("--patch=")]
  assert json.loads(patch.partition("=")[2]) == {"spec": {"suspend": True}}
  # What stop sets, start takes back.
  assert manifest(places, *GKE, "--", *GKE_ARGS)["spec"]["suspend"] is False


def test_the_manifest_has_the_environment_and_labels_that_were_asked_for(
  places,
):
  words = ["--env=HERE", '--env=ODD=a "b" $(X) $y', "--secret=tokens"]
  words += ["--label=team=lm", "--label=kueue.x-k8s.io/queue-name=q"]
  words += ["--cpu=100", "--memory=160Gi"]
  out, _, _ = places.call(
    "launch/gke.sh", "--dry-run", *GKE, *words, "--", *GKE_ARGS, HERE="there"
  )
  found = yaml.safe_load(out)
  labels = {
    "app.kubernetes.io/name": "gpt_jax",
    "team": "lm",
    "kueue.x-k8s.io/queue-name": "q",
  }
  assert found["metadata"]["labels"] == labels
  (job,) = found["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]
  assert pod["metadata"]["labels"] == labels
  (container,) = pod["spec"]["containers"]
  env = {e["name"]: expand(e["value"]) for e in container["env"]}
  assert env == {"HERE": "there", "ODD": 'a "b" $(X) $y'}
  assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
  assert container["resources"]["limits"]["memory"] == "160Gi"


def test_exit_75_starts_the_jobset_again_and_does_not_count(places):
  spec = manifest(places, *GKE, "--restarts=2", "--", *GKE_ARGS)["spec"]
  policy = spec["failurePolicy"]
  assert policy["maxRestarts"] == 2
  assert policy["rules"] == [
    {
      "name": "goOn",
      "action": "RestartJobSetAndIgnoreMaxRestarts",
      "onJobFailureReasons": ["PodFailurePolicy"],
    }
  ]
  job = spec["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
  assert pod["terminationGracePeriodSeconds"] >= 60
  exit_rule, node_rule = job["podFailurePolicy"]["rules"]
  assert exit_rule["onExitCodes"] == {
    "containerName": pod["containers"][0]["name"],
    "operator": "In",
    "values": [75],
  }
  assert node_rule["onPodConditions"][0]["type"] == "DisruptionTarget"
  assert {exit_rule["action"], node_rule["action"]} == {"FailJob"}


def test_the_manifest_leaves_no_name_to_fill_in(places):
  out, _, _ = places.call("launch/gke.sh", "--dry-run", *GKE, "--", *GKE_ARGS)
  lines = [line for line in out.splitlines() if not line.startswith("#")]
  assert "${" not in "\n".join(lines)
