"""What deploy/ holds is true of this service: configuration, ports, paths, resources. `make test-deploy` has the rest:
schemas and the tools' own parsers."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.serve._private.haproxy import HAProxyConfig
from ray.serve.schema import ServeDeploySchema

from serve_app.app import DRAIN_GRACE_S
from serve_app.config import deployment, profile
from serve_app.config.hardware import PROFILE_GPUS, NodeGpus, NoProfileFits, check_fit
from serve_app.config.placement import ACCELERATOR_SHARE, replica_options
from serve_app.config.profile import ROOT, load_config
from serve_app.config.schema import AppConfig, EngineConfig
from tests.deploy.manifests import DEPLOY, cluster, manifest

KUBERAY = ("rayservice", "raycluster")
LAMBDA = ("b200-x4", "h100-x8", "a100-x8")
HEAD = NodeGpus("head", None, 0, cpus=0)
HOME = "/srv/step"
VOLUME = f"{HOME}/.cache"


def groups(name: str) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster(name)["workerGroupSpecs"]}


def pods(name: str) -> dict[str, dict[str, Any]]:
    """The pod of each group, the head's too."""
    spec = cluster(name)
    return {"head": spec["headGroupSpec"]["template"]["spec"]} | {
        group: item["template"]["spec"] for group, item in groups(name).items()
    }


def serve_config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])
    return found


def application(nodes: list[NodeGpus] | None = None) -> AppConfig:
    args: dict[str, object] = serve_config()["applications"][0]["args"]
    return load_config(args, nodes or [])


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


# ---- KubeRay: the application ----------------------------------------------------------------------------------------


def test_the_rayservice_serves_deploy_yaml_and_changes_only_its_arguments() -> None:
    ours = yaml.safe_load((ROOT / "deploy.yaml").read_text(encoding="utf-8"))
    theirs = serve_config()
    del ours["applications"][0]["args"], theirs["applications"][0]["args"]
    assert theirs == ours, "take the change of deploy.yaml over into deploy/kuberay/rayservice.yaml"


def test_ray_serve_takes_the_configuration_as_its_dashboard_reads_it() -> None:
    schema = ServeDeploySchema.model_validate(serve_config())
    assert [item.import_path for item in schema.applications] == ["serve_app.app:build"]
    assert schema.controller_options is not None


def test_the_rayservice_starts_before_any_gpu_node_has_joined() -> None:
    config = application()
    check_fit(config, [HEAD])
    assert config.profile != "auto", "with no GPU node yet `auto` would serve the demo"
    fixed = config.model_copy(update={"replicas": config.replicas.model_copy(update={"cluster_grows": False})})
    with pytest.raises(NoProfileFits):
        check_fit(fixed, [HEAD])


@pytest.mark.parametrize("name", KUBERAY)
def test_engines_bring_the_nodes_of_the_group_with_their_profiles_name(name: str) -> None:
    config = application()
    assert cluster(name)["enableInTreeAutoscaling"] is True
    assert config.profile in groups(name)
    for layout in LAMBDA:
        assert groups(name)[layout]["replicas"] == 0, "nodes that no engine asks for"
        assert groups(name)[layout]["maxReplicas"] >= config.replicas.max


def test_old_clusters_outlive_the_longest_stream() -> None:
    assert manifest("rayservice")["spec"]["rayClusterDeletionDelaySeconds"] >= application().replicas.longest_stream_s


# ---- KubeRay: room for what Serve places -----------------------------------------------------------------------------


def autoscaling(name: str) -> dict[str, Any]:
    """What Ray's own autoscaler reads from the resource."""
    resource = {"metadata": {"name": "step", "namespace": "default"}, "spec": cluster(name)}
    found: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(resource)
    return found


def node_types(name: str) -> dict[str, dict[str, Any]]:
    """What it takes each group for."""
    found: dict[str, dict[str, Any]] = autoscaling(name)["available_node_types"]
    return found


@pytest.mark.parametrize("layout", LAMBDA)
@pytest.mark.parametrize("name", KUBERAY)
def test_a_node_of_each_gpu_group_holds_one_engine_of_its_profile(name: str, layout: str) -> None:
    config = load_config({"profile": layout}, [])
    options = replica_options(config.replicas, {})["ray_actor_options"]
    offers = node_types(name)[layout]["resources"]
    assert offers["GPU"] == options["num_gpus"]
    assert offers["CPU"] >= options["num_cpus"]
    assert offers[f"accelerator_type:{options['accelerator_type']}"] == 1
    container = groups(name)[layout]["template"]["spec"]["containers"][0]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == options["num_gpus"]


@pytest.mark.parametrize("layout", LAMBDA)
@pytest.mark.parametrize("name", KUBERAY)
def test_an_engine_that_waits_brings_a_node_of_its_group(name: str, layout: str) -> None:
    reply = scheduled(name, layout, 2)
    assert not reply.infeasible_resource_requests
    launched = {launch.instance_type: launch.count for launch in reply.to_launch}
    assert launched == {layout: 2, "ingress": groups(name)["ingress"]["minReplicas"]}


@pytest.mark.parametrize("layout", LAMBDA)
@pytest.mark.parametrize("name", KUBERAY)
def test_no_more_nodes_are_started_than_the_group_may_have(name: str, layout: str) -> None:
    most = groups(name)[layout]["maxReplicas"]
    reply = scheduled(name, layout, most + 3)
    assert {launch.instance_type: launch.count for launch in reply.to_launch}[layout] == most


def scheduled(name: str, layout: str, engines: int) -> Any:
    """What Ray's autoscaler does when so many engines of a layout wait, by Serve's options for them."""
    options = replica_options(load_config({"profile": layout}, []).replicas, {})["ray_actor_options"]
    demand = {
        "CPU": options["num_cpus"],
        "GPU": options["num_gpus"],
        f"accelerator_type:{options['accelerator_type']}": ACCELERATOR_SHARE,
    }
    config = AutoscalingConfig(autoscaling(name), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_worker_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand)] * engines),
    )
    return ResourceDemandScheduler(event_logger=None).schedule(request)


@pytest.mark.parametrize("name", KUBERAY)
def test_the_head_takes_no_work_and_has_no_gpu(name: str) -> None:
    offers = node_types(name)["headgroup"]["resources"]
    assert (offers["CPU"], offers["GPU"]) == (0, 0)
    assert "nvidia.com/gpu" not in str(cluster(name)["headGroupSpec"])


@pytest.mark.parametrize("name", KUBERAY)
def test_the_ingress_group_holds_the_least_and_the_most_ingress_replicas(name: str) -> None:
    ingress, group = application().ingress, groups(name)["ingress"]
    per_node = node_types(name)["ingress"]["resources"]["CPU"] // ingress.cpus_per_replica
    assert group["minReplicas"] * per_node > ingress.min_replicas, "a replaced one holds its CPUs: one more"
    assert group["maxReplicas"] * per_node > ingress.max_replicas


@pytest.mark.parametrize("name", KUBERAY)
def test_shared_memory_is_a_volume_and_part_of_the_pods_memory(name: str) -> None:
    for group, pod in pods(name).items():
        container = pod["containers"][0]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        shm = mounted["/dev/shm"]  # noqa: S108  # where it is mounted
        volume = next(volume for volume in pod["volumes"] if volume["name"] == shm)
        size = gibibytes(volume["emptyDir"]["sizeLimit"])
        start = cluster(name)["headGroupSpec"] if group == "head" else groups(name)[group]
        objects = int(start["rayStartParams"]["object-store-memory"]) / 2**30
        assert volume["emptyDir"]["medium"] == "Memory"
        assert size >= (32 if group in LAMBDA else 2)
        assert objects < size / 2, "vLLM's workers need the rest"
        assert size < gibibytes(container["resources"]["limits"]["memory"]) / 2


# ---- KubeRay: ports, paths, versions, secrets ------------------------------------------------------------------------


@pytest.mark.parametrize("name", KUBERAY)
def test_every_pod_names_the_endpoints_port(name: str) -> None:
    port = deployment.read(ROOT / "deploy.yaml").port
    for pod in pods(name).values():
        ports = {item["name"]: item["containerPort"] for item in pod["containers"][0]["ports"]}
        assert ports["serve"] == port


def test_workers_are_ready_when_haproxy_has_an_ingress() -> None:
    for group in groups("rayservice").values():
        probe = group["template"]["spec"]["containers"][0]["readinessProbe"]
        assert probe["httpGet"] == {
            "path": HAProxyConfig.__dataclass_fields__["health_check_endpoint"].default,
            "port": "serve",
        }


def test_ray_answers_kuberays_probes_without_a_token() -> None:
    """KubeRay asks the agent of each node, port 52365; it gets no token for that."""
    agent = importlib.import_module("ray.dashboard.http_server_agent")
    assert '"/api/healthz"' in inspect.getsource(agent)


@pytest.mark.parametrize("name", KUBERAY)
def test_ray_has_the_version_of_the_lock_and_a_token_from_a_secret(name: str) -> None:
    spec = cluster(name)
    lock = (ROOT / "requirements" / "locks" / "gpu-py312.txt").read_text(encoding="utf-8")
    assert f"\nray=={spec['rayVersion']} " in lock
    assert spec["authOptions"]["mode"] == "token"
    assert spec["authOptions"]["secretName"] in (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_are_the_images_user_and_keep_what_engines_fetch_and_compile_on_the_claim(name: str) -> None:
    dockerfile = (DEPLOY / "docker" / "Dockerfile.gpu").read_text(encoding="utf-8")
    uid = re.search(r"^USER (\d+)$", dockerfile, re.MULTILINE)
    assert uid
    claim = yaml.safe_load((DEPLOY / "kuberay" / "cache.yaml").read_text(encoding="utf-8"))["metadata"]["name"]
    for group, pod in pods(name).items():
        assert pod["securityContext"]["runAsUser"] == int(uid[1])
        if group in LAMBDA:
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
            assert volumes[mounts[VOLUME]]["persistentVolumeClaim"]["claimName"] == claim


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_images_one_volume_holds_weights_and_compiled_kernels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dockerfile = (DEPLOY / "docker" / f"Dockerfile.{kind}").read_text(encoding="utf-8")
    assert re.findall(r"^VOLUME (\S+)$", dockerfile, re.MULTILINE) == [VOLUME]
    monkeypatch.setenv("HOME", HOME)
    compiled = EngineConfig.model_fields["compile_cache_dir"].default
    assert os.path.expanduser(compiled).startswith(VOLUME)  # noqa: PTH111  # by the image's HOME


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_image_runs_a_file_that_is_there_as_a_user_that_is_not_root(kind: str) -> None:
    dockerfile = (DEPLOY / "docker" / f"Dockerfile.{kind}").read_text(encoding="utf-8")
    assert dockerfile.splitlines()[-1] == 'CMD ["serve", "run", "deploy.yaml"]'
    assert "USER 1000" in dockerfile
    assert f"STEP_SERVE_MACHINE={kind} python requirements/install.py" in dockerfile
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", re.findall(r"^ARG BASE=(\S+)$", dockerfile, re.MULTILINE)[0])
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${BASE}"}


# ---- Lambda: Ray's cluster launcher and SkyPilot ---------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAMBDA)
def test_rays_cluster_launcher_takes_the_file(layout: str) -> None:
    config = yaml.safe_load((DEPLOY / "ray-launcher" / f"lambda-{layout}.yaml").read_text(encoding="utf-8"))
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    started = " ".join([*config["head_start_ray_commands"], *config["worker_start_ray_commands"]])
    assert started.count("RAY_AUTH_MODE=token") == 2
    assert set(config["rsync_exclude"]) <= {
        ".git",
        *(ROOT / ".gitignore").read_text(encoding="utf-8").replace("/", "").split(),
    }


@pytest.mark.parametrize("layout", LAMBDA)
def test_skypilot_hires_the_gpus_that_the_profile_is_for(layout: str) -> None:
    task = yaml.safe_load((DEPLOY / "skypilot" / f"lambda-{layout}.yaml").read_text(encoding="utf-8"))
    model, count = task["resources"]["accelerators"].split(":")
    wanted = next(item for item in PROFILE_GPUS if item.profile == layout)
    assert model.removesuffix("-80GB") in wanted.accelerators
    assert int(count) == wanted.gpus
    assert task["resources"]["ports"] == deployment.read(ROOT / "deploy.yaml").port


def scripts() -> list[Path]:
    return sorted(DEPLOY.rglob("*.sh"))


def test_every_script_that_a_file_runs_is_there_and_can_be_run() -> None:
    named = set()
    for file in sorted(DEPLOY.rglob("*.yaml")):
        named |= set(re.findall(r"deploy/[\w/-]+\.sh", file.read_text(encoding="utf-8")))
    assert named == {str(script.relative_to(ROOT)) for script in scripts()}
    assert all(os.access(script, os.X_OK) for script in scripts())


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_bash_can_read_the_script(script: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    subprocess.run([bash, "-n", str(script)], check=True)


def test_the_page_names_every_file_of_deploy() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    files = {path.relative_to(ROOT) for path in DEPLOY.rglob("*") if path.is_file()}
    assert not [str(file) for file in sorted(files) if str(file) not in page and file.name not in page]
    assert set(profile.profile_names()) >= set(re.findall(r"\b[abh]\d+-x\d\b", page))


# ---- KubeRay: nodes that go ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KUBERAY)
def test_a_pod_leaves_before_it_is_ended(name: str) -> None:
    replicas = application().replicas
    for group, pod in pods(name).items():
        if group == "head":
            continue
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:4] == ["python", "-m", "serve_app", "leave"]
        deadline_s = float(command[command.index("--deadline-s") + 1])
        assert deadline_s < pod["terminationGracePeriodSeconds"]
        least_s = replicas.longest_stream_s if group == "ingress" else replicas.drain_timeout_s + DRAIN_GRACE_S
        assert deadline_s >= least_s, "streams must end, or move, before"
