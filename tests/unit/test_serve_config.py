"""What is served: one typed config from a serve config, a recipe or a file for a cluster; mistakes by name."""

import copy
import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_recipe import BASE

from fusion.errors import ClusterError, InputError, ModelError, RecipeError, StageError
from fusion.models import ModelRef, PinnedModel, check_folder
from jobs.serve import check_port, welcome
from jobs.serve_config import BUILDER, given_security, load_config, write_deploy_file
from jobs.swap import NOTE, find
from serving.cards import chat_card, reward_card
from serving.config import Autoscaling, ChatModel, EnginePlacement, RewardModel, RewardPlacement, ServeConfig
from serving.layout import engine_name, reward_name, scaling
from tiny_models import save_chat_model, save_reward_model

ROOT = Path(__file__).parents[2]
SCALE = {"max_replicas": 4, "target_ongoing_requests": 8}
SERVICE = {
    "chat": {
        "fused": {"folder": "models/chat", "engine": {"replicas": 2, "max_num_seqs": 16}},
        "target": {"folder": "models/target", "chat": {"system": "Be brief."}, "engine": {"autoscaling": SCALE}},
    },
    "rewards": {
        "rm": {
            "folder": "models/rm",
            "canary": {"prompt": "2+2?", "better": "4", "worse": "5"},
            "placement": {"replicas": 3, "resources": {"accelerator_type:H100": 0.001}},
        }
    },
    "http": {"autoscaling": {"min_replicas": 2, **SCALE}},
    "port": 8123,
}


def write(path: Path, data) -> Path:
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def changed(path: str, value):
    data = copy.deepcopy(SERVICE)
    *keys, last = path.split("/")
    place = data
    for key in keys:
        place = place.setdefault(key, {})
    place[last] = value
    return data


def test_a_serve_config_is_read_with_overlays_and_assignments(tmp_path):
    over = write(tmp_path / "over.yaml", {"chat": {"fused": {"engine": {"replicas": 5}}}})
    config = load_config(
        [write(tmp_path / "serve.yaml", SERVICE), over], ["rewards.rm.placement.replicas=7"], port=9000
    )
    assert (config.chat["fused"].engine.replicas, config.chat["fused"].engine.max_num_seqs) == (5, 16)
    assert (config.rewards["rm"].placement.replicas, config.port, config.host) == (7, 9000, "127.0.0.1")
    assert config.chat["target"].chat.system == "Be brief."
    assert config.http.at_least == 2


BAD = {
    "misspelt": ("chat/fused/engine/replica", 2, r"chat\.fused\.engine: unknown field 'replica'; did you mean 'replicas'"),
    "unknown": ("chats", {}, r"unknown field 'chats'; did you mean 'chat'"),
    "never": ("chat/target/engine/autoscaling", {"max_replicas": 2}, r"autoscaling\.target_ongoing_requests: is missing"),
    "order": ("http/autoscaling", {**SCALE, "min_replicas": 9}, r"http\.autoscaling: min_replicas is 9, above max_replicas 4"),
    "both": ("chat/target/engine/replicas", 2, r"chat\.target\.engine: replicas and autoscaling are both given"),
    "target above a replica": (
        "chat/target/engine/max_num_seqs", 3, r"target_ongoing_requests is 8, but a replica takes 4 \(max_num_seqs and a sixteenth\)",
    ),
    "target of a whole replica": (
        "chat/target/engine/max_num_seqs", 7, r"target_ongoing_requests is 8, but a replica takes 8 \(max_num_seqs and a sixteenth\)",
    ),
    "front above its limit": ("limits/max_in_flight", 4, r"target_ongoing_requests is 8, but a replica takes 4"),
    "gpu as a resource": ("rewards/rm/placement/resources", {"GPU": 1}, r"resources: GPU has its own field"),
    "nothing of a resource": ("rewards/rm/placement/resources", {"fast": 0}, r"fast is 0; ask for more than 0"),
    "canary of one answer": ("rewards/rm/canary/worse", "4", r"rewards\.rm\.canary: better and worse are the same"),
    "two kinds": ("rewards/fused", {"folder": "x"}, r"'fused' names a chat model and a reward model"),
    "port": ("port", 0, r"port: .*\(found 0\)"),
}  # fmt: skip


@pytest.mark.parametrize(("place", "value", "said"), BAD.values(), ids=BAD)
def test_a_mistake_is_named_by_file_field_and_nearest_name(tmp_path, place, value, said):
    path = write(tmp_path / "serve.yaml", changed(place, value))
    with pytest.raises(RecipeError, match=said) as caught:
        load_config([path])
    assert str(path) in str(caught.value)
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (2, 0)


def test_a_file_that_is_neither_is_said(tmp_path):
    with pytest.raises(RecipeError, match="neither a recipe"):
        load_config([write(tmp_path / "x.yaml", {"port": 1})])
    with pytest.raises(RecipeError, match="no model to serve"):
        load_config([write(tmp_path / "x.yaml", {"chat": {}})])


# ---- recipes ----------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose run has exported its model, with local folders for all that is served."""
    for name in ("target", "s", "rm"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "w.safetensors").touch()
    data = copy.deepcopy(BASE)
    data["root"] = str(tmp_path / "runs")
    system = {"system": "Be brief.", "date": "2024-07-26"}
    data["target"] = {"path": str(tmp_path / "target"), "chat": {**system, "template": "the target's own"}}
    data["sources"]["s"] = {"path": str(tmp_path / "s"), "chat": {"system": "Be a source."}}
    canary = SERVICE["rewards"]["rm"]["canary"]
    data["serve"] = {
        "arm": "wrpo",
        "also": ["target", "s"],
        "rewards": {"rm": {"path": str(tmp_path / "rm"), "canary": canary}},
    }
    (tmp_path / "runs/r/model").mkdir(parents=True)
    return data


def test_a_recipe_serves_its_arm_and_what_stands_beside_it(tmp_path, recipe):
    security = {"keys_env": "KEYS", "public": True}
    config = load_config([write(tmp_path / "r.yaml", recipe)], host="0.0.0.0", security=security)
    assert list(config.chat) == ["wrpo", "target", "s"]
    assert config.chat["wrpo"].folder == config.run / "model" == tmp_path / "runs/r/model"
    assert config.chat["target"].folder == tmp_path / "target"
    systems = {name: (model.chat.system, model.chat.template) for name, model in config.chat.items()}
    # The exported model has the template in its folder; the others have it from the recipe.
    assert systems == {
        "wrpo": ("Be brief.", None), "target": ("Be brief.", "the target's own"), "s": ("Be a source.", None),
    }  # fmt: skip
    assert config.rewards["rm"].canary.better == "4"
    assert (config.host, config.security.keys_env, config.security.public) == ("0.0.0.0", "KEYS", True)
    assert config.observability.access_log == str(tmp_path / "runs/r/access.jsonl")


def test_a_recipe_without_a_service_or_without_a_model_says_what_to_do(tmp_path, recipe):
    path = write(tmp_path / "r.yaml", recipe)
    with pytest.raises(RecipeError, match=r"--set serve\.arm=NAME"):
        load_config([path], ["serve=null"])
    (tmp_path / "runs/r/model").rmdir()
    with pytest.raises(StageError, match="fuseline run"):
        load_config([path])


def test_serve_is_no_part_of_any_key(tmp_path, recipe):
    from fusion.pipeline import build
    from fusion.recipe import load_recipe

    (tmp_path / "p.jsonl").touch()
    recipe["prompts"][0]["path"] = str(tmp_path / "p.jsonl")
    path = write(tmp_path / "r.yaml", recipe)
    keys = [[stage.key for stage in build(load_recipe([path], sets)).stages]
            for sets in ([], ["serve.also=[]", "serve.rewards={}"])]  # fmt: skip
    assert keys[0] == keys[1]


# ---- keys -------------------------------------------------------------------------------------


def test_keys_of_the_command_line_win_over_the_files_and_leave_the_rest(tmp_path):
    own = {"keys_file": "theirs.yaml", "header_bytes": 4096}
    path = write(tmp_path / "serve.yaml", {**SERVICE, "security": own})
    given = given_security(keys_file=tmp_path / "ours.yaml", keys_env=None, public=True)
    config = load_config([path], ["security.header_bytes=5000"], security=given)
    assert config.security.keys_file == tmp_path / "ours.yaml"
    assert (config.security.header_bytes, config.security.public, config.security.keys_env) == (5000, True, None)
    assert given_security(keys_file=None, keys_env=None, public=False) == {}
    assert load_config([path], security={}).security.keys_file == Path("theirs.yaml")


@pytest.mark.parametrize(
    ("host", "given", "said"),
    [
        (None, {"public": True}, r"a public service needs keys: .*--keys-file.*--keys-env"),
        ("0.0.0.0", {"public": True}, r"a public service needs keys"),
        ("0.0.0.0", {"keys_env": "KEYS"}, r"host 0\.0\.0\.0 can be reached .*--public"),
        (None, {"keys_env": "a-b"}, r"security\.keys_env: "),
    ],
)
@pytest.mark.parametrize("form", ["recipe", "serve config"])
def test_a_public_service_without_keys_is_one_line(tmp_path, recipe, form, host, given, said):
    path = write(tmp_path / "x.yaml", recipe if form == "recipe" else SERVICE)
    with pytest.raises(RecipeError, match=said) as caught:
        load_config([path], host=host, security=given)
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (2, 0)


def test_keys_that_cannot_be_read_end_the_command_before_ray(tmp_path, folders):
    models = {"rewards": {"rm": {"folder": str(folders[1])}}}
    command = [sys.executable, "-m", "jobs.run", "serve", write(tmp_path / "serve.yaml", models)]
    for more in (["--keys-file", tmp_path / "none.yaml"], ["--keys-env", "FUSELINE_TEST_NOT_SET"]):
        for to in ([], ["--swap"]):
            # Attaching to a cluster would be refused with another message.
            done = subprocess.run([*command, *more, *to, "--address", "127.0.0.1:1"], cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
            assert str(more[1]) in done.stderr


@pytest.mark.parametrize(
    ("host", "family", "shown"), [("127.0.0.1", socket.AF_INET, "127.0.0.1"), ("::1", socket.AF_INET6, "[::1]")]
)
def test_a_port_is_free_or_taken_on_either_kind_of_loopback(tmp_path, host, family, shown):
    try:
        taken = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    config = ServeConfig.of(chat={"a": tmp_path}, host=host, port=taken.getsockname()[1])
    with taken, pytest.raises(InputError) as caught:
        check_port(config)
    said = f"cannot listen on {shown}:{config.port}: Address already in use; choose another one with --port"
    assert str(caught.value) == said
    check_port(config)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", ""])
def test_a_host_that_is_not_this_machine_is_said(tmp_path, host):
    config = ServeConfig.of(chat={"a": tmp_path}, host=host, security={"public": True, "keys_env": "KEYS"})
    with pytest.raises(InputError, match=r"^cannot listen on .*:8000: .*; choose another one with --host$"):
        check_port(config)


def test_the_welcome_says_where_it_is_where_it_writes_and_how_to_ask(tmp_path):
    config = load_config([write(tmp_path / "serve.yaml", SERVICE)])
    lines = welcome(config, "http://h:1")
    assert lines[:2] == ["serving at http://h:1 (models: fused, target, rm); Ctrl-C ends it", "page: http://h:1/ui"]
    chat, rewards = lines[2:]
    assert "access log" not in "".join(lines) and "Authorization" not in chat + rewards
    assert shlex.split(chat)[2:5] == ["http://h:1/v1/chat/completions", "-H", "content-type: application/json"]
    assert json.loads(shlex.split(rewards)[-1])["model"] == "rm"
    more = {**SERVICE, "security": {"keys_env": "KEYS"}, "observability": {"access_log": "a.jsonl"}}
    keyed = welcome(load_config([write(tmp_path / "keyed.yaml", more)]), "http://h:1")
    assert keyed[2] == f"access log: {Path.cwd() / 'a.jsonl'}"
    for line in keyed[3:]:
        assert '-H "Authorization: Bearer $FUSELINE_API_KEY"' in line  # in double quotes: the shell fills it in
        assert "model" in json.loads(shlex.split(line)[-1])


# ---- the file for a cluster -------------------------------------------------------------------


def test_the_file_for_a_cluster_is_what_serve_deploy_reads_and_gives_the_same_service(tmp_path):
    from ray.serve.schema import ServeDeploySchema

    config = load_config([write(tmp_path / "serve.yaml", SERVICE)])
    out = tmp_path / "deploy.yaml"
    write_deploy_file(config, out)
    data = yaml.safe_load(out.read_text())
    schema = ServeDeploySchema.model_validate(data)
    (application,) = schema.applications
    assert (application.name, application.import_path, application.route_prefix) == ("fuseline", BUILDER, "/")
    assert (schema.http_options.host, schema.http_options.port) == ("127.0.0.1", 8123)
    assert ServeConfig.model_validate(application.args) == config.resolved()
    assert load_config([out]) == config.resolved()
    assert load_config([out], ["chat.fused.engine.replicas=9"]).chat["fused"].engine.replicas == 9
    keyed = tmp_path / "keyed.yaml"
    write_deploy_file(load_config([out], security={"keys_file": Path("keys.yaml"), "public": True}), keyed)
    assert load_config([keyed]).security.keys_file == Path.cwd() / "keys.yaml"
    more = {**SERVICE, "run": "runs/r", "observability": {"access_log": "a.jsonl"}}
    write_deploy_file(load_config([write(tmp_path / "more.yaml", more)]), keyed)
    arguments = yaml.safe_load(keyed.read_text())["applications"][0]["args"]
    assert arguments["run"] == str(Path.cwd() / "runs/r")
    assert arguments["observability"] == {"access_log": str(Path.cwd() / "a.jsonl")}
    assert all(Path(m["folder"]).is_absolute() for m in data["applications"][0]["args"]["chat"].values())
    assert "serve deploy" in out.read_text().split("\n")[2]


def test_a_file_of_another_application_is_refused(tmp_path):
    other = {"applications": [{"name": "x", "import_path": "a:b", "args": {}}]}
    with pytest.raises(RecipeError, match=BUILDER):
        load_config([write(tmp_path / "x.yaml", other)])


# ---- layout -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return save_chat_model(root / "chat"), save_reward_model(root / "rm"), save_reward_model(root / "rm2", seed=1)


def test_a_deployment_is_named_after_what_it_holds(folders):
    chat, rm, rm2 = folders

    def engine(**fields):
        model = ChatModel(folder=chat, engine=EnginePlacement(**fields))
        return engine_name(chat_card("c", model, on_gpu=False), model, on_gpu=False)

    def reward(folder, **fields):
        model = RewardModel(folder=folder, **fields)
        return reward_name(reward_card("r", model), model, on_gpu=False)

    assert engine().startswith("chat:c:")
    assert engine() == engine(replicas=4) == engine(autoscaling=Autoscaling(**SCALE)) == engine(max_queued_requests=1)
    assert len({engine(), engine(max_num_seqs=4), engine(max_model_len=64), engine(dtype="bfloat16")}) == 4
    assert reward(rm) == reward(rm, placement=RewardPlacement(replicas=2))
    assert len({reward(rm), reward(rm2), reward(rm, settings={"max_length": 64})}) == 3


def test_scaling_is_what_ray_is_told():
    assert scaling(EnginePlacement(replicas=3)) == {"num_replicas": 3}
    told = scaling(EnginePlacement(autoscaling=Autoscaling(**SCALE)))["autoscaling_config"]
    assert (told["min_replicas"], told["max_replicas"], told["target_ongoing_requests"]) == (1, 4, 8)


def test_gpus_are_counted_with_the_least_of_each_model():
    config = ServeConfig.model_validate({**SERVICE, "accelerator": "gpu"})
    assert config.gpus() == 2 + 1 + 3 * 0.5
    with pytest.raises(ClusterError, match=r"ask for 4.5 GPU; this cluster has 4"):
        config.runs_on_gpu(4)
    assert config.runs_on_gpu(5)
    auto = config.model_copy(update={"accelerator": "auto"})
    assert (auto.runs_on_gpu(4), auto.runs_on_gpu(5)) == (False, True)


def test_a_cards_canary_says_whether_a_pair_guards_it(folders):
    _, rm, _ = folders
    guarded = RewardModel(folder=rm, canary=SERVICE["rewards"]["rm"]["canary"])
    assert (reward_card("r", RewardModel(folder=rm)).canary, reward_card("r", guarded).canary) == ("none", "pair")


# ---- the running service ----------------------------------------------------------------------


def test_the_running_service_is_found_by_the_note_in_its_session(tmp_path):
    from cluster.session import SessionDirectory

    with pytest.raises(ClusterError, match="--address"):
        find("fuseline", tmp_path)
    sessions = [SessionDirectory(below=tmp_path) for _ in range(3)]
    notes = [{"app": "fuseline", "url": "u", "address": f"h:{i}", "auth": "token"} for i in range(2)]
    try:
        (sessions[0].path / NOTE).write_text(json.dumps(notes[0]))
        (sessions[2].path / NOTE).write_text(json.dumps({**notes[1], "app": "other"}))
        assert find("fuseline", tmp_path) == notes[0]
        (sessions[1].path / NOTE).write_text(json.dumps(notes[1]))
        with pytest.raises(ClusterError, match=r"2 services 'fuseline'.*h:0 \(u\), h:1|h:1 \(u\), h:0"):
            find("fuseline", tmp_path)
    finally:
        for session in sessions:
            session.remove()
    with pytest.raises(ClusterError, match="no service"):
        find("fuseline", tmp_path)


# ---- outputs ----------------------------------------------------------------------------------


def test_outputs_that_do_not_say_the_score_are_refused_before_anything_is_loaded(tmp_path):
    folder = save_reward_model(tmp_path / "three", id2label={0: "a", 1: "b", 2: "c"}, num_labels=3)
    two = save_reward_model(tmp_path / "two", num_labels=2)
    assert "id2label" not in json.loads((two / "config.json").read_text())  # transformers leaves its default out
    weighted = RewardModel(folder=folder, settings={"objectives": {"a": 1.0}})
    assert reward_card("r", weighted).objectives == ["a", "b", "c"]
    for model, said in (
        (RewardModel(folder=folder), r"3 outputs \(a, b, c\)"),
        (RewardModel(folder=two), r"2 outputs \(LABEL_0, LABEL_1\)"),
        (RewardModel(folder=folder, settings={"objectives": {"d": 1.0}}), r"no output is named 'd'"),
    ):
        with pytest.raises(ModelError, match=said):
            reward_card("r", model)


@pytest.mark.parametrize("names", [{"a": "b"}, {"1": "a"}, {"0": "a", "2": "b"}, {}, ["a"], 1])
def test_names_of_outputs_that_are_not_by_number_are_refused_before_anything_is_loaded(tmp_path, names):
    folder = save_reward_model(tmp_path / "rm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": names}))
    with pytest.raises(ModelError, match=r"rm/config\.json: id2label must name the outputs by number"):
        reward_card("r", RewardModel(folder=folder))


@pytest.mark.parametrize("config", ["[]", "null", "1", '"text"'])
def test_a_model_folder_whose_config_is_no_object_is_refused(tmp_path, config):
    """By what `serve`, a swap and the stages of a recipe ask of each model folder."""
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(ModelError, match=r"config\.json is not a JSON object; .* is not a Hugging Face model folder"):
        ServeConfig.of(rewards={"a": tmp_path}).check_folders()
    with pytest.raises(ModelError, match=r"config\.json is not a JSON object"):
        PinnedModel("a", ModelRef(path=tmp_path), tmp_path / "digests.json").folder()


def test_a_target_that_a_replica_on_cpus_never_reaches_is_refused_once_it_is_known_where_it_runs(tmp_path):
    """A replica takes 32 requests on a GPU and 2 on CPUs."""
    from serving.ingress import build_application

    folder = str(save_reward_model(tmp_path / "rm"))
    config = ServeConfig.model_validate({"rewards": {"rm": {"folder": folder, "placement": {"autoscaling": SCALE}}}})
    build_application(config, on_gpu=True)
    with pytest.raises(InputError, match=r"^rewards\.rm\.placement: .* is 8, but a replica takes 2 "):
        build_application(config, on_gpu=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"model\.safetensors\.index\.json is not readable JSON"),
        ("[]", r"model\.safetensors\.index\.json is not a JSON object"),
        ("{}", r"has no weight_map"),
        ('{"weight_map": {"a": "lost.safetensors"}}', r"lists lost\.safetensors, which is missing \(1 in all\)"),
    ],
)
def test_a_torn_index_of_a_model_is_named(tmp_path, text, said):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=said):
        check_folder(tmp_path)
