"""What the configuration refuses, and that each refusal names the line at fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.config import fleet
from serve_app.config.hardware import NodeGpus
from serve_app.config.schema import ConfigError
from serve_app.config.yaml_lines import parse

H100 = [NodeGpus("a", "H100", 8, 64)]


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        fleet.load(parse(text, "deploy.yaml"), H100)
    return str(caught.value)


@pytest.mark.parametrize(("budget", "most"), [(16, 2), (8, 1)])
def test_engines_at_the_start_are_within_the_budget(budget: int, most: int) -> None:
    told = refusal(f"profile: h100-x8\nreplicas:\n  min: 1\n  max: 6\n  gpu_budget: {budget}\n  initial: 5\n")
    assert f"initial (5) is above what gpu_budget ({budget}) allows: {most} engine(s) of 8 GPUs" in told


@pytest.mark.parametrize(
    ("resource", "key"),
    [
        ("GPU", "gpus_per_replica"),
        ("CPU", "cpus_per_replica"),
        ("memory", "it is not reserved here"),
        ("object_store_memory", "it is not reserved here"),
    ],
)
def test_rays_own_resources_are_no_custom_ones(resource: str, key: str) -> None:
    told = refusal(f"profile: cpu-demo\nreplicas:\n  resources: {{{resource}: 8}}\n")
    assert told.startswith(f"deploy.yaml:3: replicas.resources: `{resource}` is no custom resource")
    assert key in told


def test_a_label_selector_is_one_for_ray_too() -> None:
    told = refusal('profile: cpu-demo\nreplicas:\n  label_selector: {a: "x,y z"}\n')
    assert told.startswith("deploy.yaml:3: replicas.label_selector: invalid label selector value `x,y z`")
    fleet.load(parse('profile: cpu-demo\nreplicas: {label_selector: {a: "in(x,y)"}}\n', "deploy.yaml"), H100)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("replicas:\n  gpus_per_replica: 4\n", "deploy.yaml:3: replicas.gpus_per_replica is 4, but the parallel"),
        ("engine:\n  flags:\n    tensor_parallel_size: 4\n", "deploy.yaml:4: replicas.gpus_per_replica is 8, but"),
        (
            "engine:\n  flags:\n    tensor-parallel-size: '8'\n",
            "deploy.yaml:4: engine.flags.tensor-parallel-size is '8', a text; write the number without quotes",
        ),
        (
            'replicas:\n  schedule:\n    - min: 1\n      to: "18:00"\n',
            "deploy.yaml:4: `replicas.schedule.0.from` is needed and not there",
        ),
        ('replicas:\n  schedule: [{form: "08:00"}]\n', "`replicas.schedule.0.form`; did you mean `from`?"),
        ('replicas:\n  schedule: [{xyz: "08:00"}]\n', "known here: min, from, to, days, timezone"),
        (
            'replicas:\n  schedule: [{from: "08:00", to: "18:00", min: 1}]\n',
            "deploy.yaml:3: replicas.schedule needs slo",
        ),
        ("pools:\n  - profile: h100-x8-fp8\n", "deploy.yaml:3: `pools.0.name` is needed and not there"),
        ("replicas:\n  accelerator_type: h100\n", "deploy.yaml:3: replicas.accelerator_type: 'h100' is a name that"),
        (
            "engine:\n  env: {OMP_NUM_THREADS: 1}\n",
            "deploy.yaml:3: engine.env.OMP_NUM_THREADS: input should be a valid",
        ),
        ("engine:\n  env: {OMP_NUM_THREADS: 1}\n", "string: write it in quotes"),
        ("replicas:\n  max: 6\n  gpu_budget: 8\n  initial: 5\n", "deploy.yaml:5: replicas: initial (5) is above"),
        ("slo:\n  ttft_p95_s: 3000\n", "deploy.yaml:3: slo.ttft_p95_s (3000) is not below replicas.max_queue_wait_s"),
        ("slo:\n  tpot_p95_s: 50\n", "deploy.yaml:3: slo.tpot_p95_s: 50 seconds for each token is no objective"),
        ("engine:\n  fake: {gap_s: 1}\n", "deploy.yaml:3: engine: fake: nothing reads these options with kind: vllm"),
    ],
)
def test_a_refusal_names_the_line_that_is_laid_over_the_profile(text: str, told: str) -> None:
    assert told in refusal(f"profile: h100-x8\n{text}")


def test_what_the_profile_itself_has_wrong_is_told_with_its_own_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {source: x}\nengine:\n  flags:\n    tensor-parallel-size: 4\nreplicas:\n  gpus_per_replica: 8\n"
    )
    assert f"{file}:6: replicas.gpus_per_replica is 8" in refusal(f"profile: {file}\nengine: {{warm_up: false}}\n")


def test_the_nearest_name_of_a_gpu_is_rays() -> None:
    told = refusal("profile: h100-x8\nreplicas: {accelerator_type: h100, cluster_grows: true}\n")
    assert "Ray's is `H100`" in told
