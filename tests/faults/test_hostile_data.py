"""A file from a stranger is read as data: it runs no code and reaches nothing outside."""

import json
import os
import pickle
import socket
import zipfile

import numpy as np
import pytest

import qkvbench.cli
from fake_study import experiments, record
from faults.runs import TRAINING, Numbers, every_step, experiment, progress, save_steps
from qkvbench.data.cache import sha256_of
from qkvbench.results.store import Store

SCRIPT = "<script>document.title='taken'</script>"


class Evil:
    """What a pickle does when it is loaded: here, to leave a trace."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path):
    """A place that must stay empty; and a network that must not be asked."""
    place = tmp_path / "canary"
    yield place
    assert not place.exists()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("The network was asked.")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_canary_would_sing(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def _pt(path, content):
    """As torch.save writes: a pickle in a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3")


def _npz(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)


WRITTEN = {
    "own.pkl": lambda path, content: path.write_bytes(content),
    "own.csv": lambda path, content: path.write_bytes(content),
    "own.txt": lambda path, content: path.write_bytes(content),
    "own.jsonl": lambda path, content: path.write_bytes(content),
    "own.pt": _pt,
    "own.npz": _npz,
    "model.safetensors": lambda path, content: path.write_bytes(content),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_pickle_that_is_given_as_data_is_refused_and_never_run(name, tmp_path, canary, capsys):
    WRITTEN[name](tmp_path / name, pickle.dumps(Evil(canary)))
    words = ["run", "--variants", "q,k,v", "--tasks", str(tmp_path / name), "--dry-run"]
    assert qkvbench.cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.slow
def test_a_pickle_that_is_given_as_a_checkpoint_to_analyse_is_refused(tmp_path, canary, capsys):
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Evil(canary)))
    words = ["analyse", str(tmp_path / "model.safetensors"), "--heads", "2"]
    assert qkvbench.cli.main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_pickle_in_a_checkpoint_s_place_is_set_aside_though_its_hash_is_right(
    tmp_path, canary, caplog
):
    wanted = experiment(training=TRAINING)
    place = save_steps(tmp_path / "checkpoints", wanted, [1, 2])
    folder = place.folder(wanted) / "step-000000002"
    sums = (folder / "SHA256SUMS").read_text()
    before = sha256_of(folder / "state.safetensors")
    (folder / "state.safetensors").write_bytes(pickle.dumps(Evil(canary)))
    after = sha256_of(folder / "state.safetensors")
    (folder / "SHA256SUMS").write_text(sums.replace(before, after))
    assert next(place.valid(wanted)).progress.step == 1
    assert "not a safetensors file" in caplog.text


def test_an_array_of_objects_is_not_written_into_a_checkpoint(tmp_path, canary):
    wanted = experiment()
    hidden = {"weights.a": np.array([Evil(canary)], dtype=object)}
    with pytest.raises(Exception, match=r"(?i)object|dtype|type"):
        every_step(tmp_path / "checkpoints").save(wanted, progress(wanted, 1), Numbers(hidden))


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "0" * 15 + "/", "..", ""])
def test_a_record_whose_id_is_a_path_is_damaged_and_nothing_outside_is_touched(name, tmp_path):
    store = Store(tmp_path / "deep" / "store")
    good, other = (record(made) for made in experiments("digits", seeds=1)[:2])
    store.write_run(good)
    path = store.write_run(other)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id": name}))
    before = sorted(tmp_path.rglob("*"))
    [damaged] = store.runs().damaged
    assert damaged.path == path
    with pytest.raises(ValueError, match=r"record says|hexadecimal"):
        store.write_run(good.model_copy(update={"id": name}))
    assert sorted(tmp_path.rglob("*")) == before


def test_markup_in_a_record_is_text_on_the_page_and_in_the_terminal(tmp_path, capsys):
    store = Store(tmp_path)
    for number, made in enumerate(experiments("digits", seeds=1)[:2]):
        good = record(made)
        path = store.write_run(good)
        changed = json.loads(path.read_text())
        changed["machine"]["device"] = SCRIPT
        if number == 0:
            changed |= {"status": "failed", "reason": f"{SCRIPT}\x1b[2J", "metrics": {}}
        path.write_text(json.dumps(changed))
    (tmp_path / "runs" / f"{SCRIPT.replace('/', '_')}.json").write_text("{}")
    assert qkvbench.cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "taken" in page
    assert SCRIPT not in page
    assert "<script>document" not in page
    said = capsys.readouterr()
    assert "\x1b[2J" not in said.out + said.err


@pytest.mark.parametrize(
    "words",
    [
        ["run", "../../../etc/passwd"],
        ["run", "quick/../../x"],
        ["run", "os"],
        ["run", "--variants", "q,k,v", "--tasks", "digits/../../../../etc/passwd"],
        ["run", "--variants", "q,k,v", "--tasks", "digits", "--backend", "../torch"],
        ["run", "--variants", "__import__('os').mkdir('canary')", "--tasks", "digits"],
        ["report", "STORE", "--as", "../page"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_a_path_or_a_program_names_nothing(
    words, tmp_path, canary, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Store("STORE").write_run(record(experiments("digits", seeds=1)[0]))
    before = sorted(tmp_path.rglob("*"))
    assert qkvbench.cli.main(words) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folders_of_a_run_stay_inside_the_store(tmp_path):
    wanted, store = experiment(), Store(tmp_path / "store")
    place = every_step(store.checkpoints)
    assert store.path in place.folder(wanted).parents
    place.save(wanted, progress(wanted, 1), Numbers({"weights.a": np.zeros(3, np.float32)}))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
