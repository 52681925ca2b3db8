"""Tasks of the Hugging Face Hub, on small files of the documented schemas: none was run on more."""

import json
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score

from qkvbench import tasks
from qkvbench.cli import main
from qkvbench.data import hub_rows, hub_text
from qkvbench.data.batch import IGNORE_INDEX, Predictions
from qkvbench.data.cache import DataRefusedError, DataUnavailableError
from qkvbench.data.growing_array import GrowingArray
from qkvbench.data.hub_images import square
from qkvbench.tasks import lra_listops
from qkvbench.tasks.kinds import glue
from qkvbench.tasks.wmt14_en_de import WMT14

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("datasets")

HUB = [name for name in tasks.names() if tasks.find(name).tier == "hub"]
GLUE = [name for name in HUB if name.startswith("glue-")]
WORDS = ["the", "film", "was", "not", "what", "a", "critic", "of", "old", "school", "called", "it"]


@pytest.fixture(name="files")
def _files(tmp_path, monkeypatch):
    """A function that writes the rows of a split where the folder in place of the Hub has them."""
    monkeypatch.setenv("QKVBENCH_HUB", str(tmp_path / "hub"))
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))

    def write(data, split, columns, part=0):
        path = tmp_path / "hub" / data.repository / data.files[split].replace("*", f"{part:05}")
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(columns), path)

    return write


def sentences(count, seed, words=9):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, words)) + f" {number}" for number in range(count)]


def prose(count, seed):
    return [" ".join(sentences(6, seed + number)) for number in range(count)]


def image_file(seed, width=70, height=50):
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def outcome(predicted, right):
    count = len(right)
    shape = (count, 1)
    return Predictions(
        np.ones(shape),
        np.array(predicted).reshape(shape),
        np.array(right).reshape(shape),
        np.zeros(shape, int),
    )


def test_a_file_that_grows_has_the_bytes_of_an_array_saved_at_once(tmp_path):
    array = np.random.default_rng(0).integers(300, size=(1234, 3), dtype=np.uint16)
    with GrowingArray(tmp_path / "grown.npy", np.uint16, (3,)) as file:
        for part in np.array_split(array, 7):
            file.append(part)
    np.save(tmp_path / "saved.npy", array)
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


@pytest.mark.parametrize("name", HUB)
def test_a_task_of_the_hub_is_pinned_and_says_that_it_was_not_run(name):
    task = tasks.find(name)
    assert task.hub is not None
    assert re.fullmatch(r"[0-9a-f]{40}", task.hub.revision)
    assert all(pattern.endswith(".parquet") for pattern in task.hub.files.values())
    assert "not yet run on the real data" in task.about
    assert task.hub.prepared_bytes > 0


@pytest.mark.parametrize("name", GLUE)
def test_the_scored_split_of_glue_is_the_published_validation_split(name, files):
    task = tasks.find(f"{name}#bytes")
    texts, labels = task.hub.columns[:-1], [0.0, 3.8] if name == "glue-stsb" else [0, 1]
    scored = next(split for split in task.hub.files if split != "train")
    for split, count in (("train", 40), (scored, 10)):
        columns = {each: sentences(count, seed) for seed, each in enumerate(texts, len(split))}
        files(task.hub, split, {**columns, "label": labels * (count // 2), "idx": range(count)})
    found = task.load()
    assert [len(part) for part in (found.train, found.validation, found.test)] == [36, 4, 10]
    test = found.test.batch(np.arange(10))
    numbers = [0, 19] if name == "glue-stsb" else [0, 1]
    assert test.targets.ravel().tolist() == 5 * numbers
    first = bytes(test.inputs[0][: test.lengths[0]].astype(np.uint8)).split(b"\0")
    assert [part.decode() for part in first] == [
        sentences(10, seed)[0] for seed, _ in enumerate(texts, len(scored))
    ]


def test_of_two_texts_that_are_too_long_the_longer_one_is_cut():
    short, long = np.arange(1, 4), np.arange(1, 30)
    assert len(glue.join([short, long], 0, 12)) == 12
    assert glue.join([short, long], 0, 12)[:4].tolist() == [1, 2, 3, 0]
    assert glue.join([long, short], 0, 12)[-4:].tolist() == [0, 1, 2, 3]
    assert (glue.join([long, long], 0, 12) == 0).argmax() == 5
    assert glue.join([short, short], 0, 12).tolist() == [1, 2, 3, 0, 1, 2, 3]


def test_the_scores_of_glue_are_those_of_their_definitions():
    right, predicted = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1, 0, 1]
    expected = f1_score(right, predicted)
    assert glue.f1(outcome(predicted, right))["f1"] == pytest.approx(expected)
    # Matthews's correlation of two classes is Pearson's of the numbers 0 and 1.
    expected = np.corrcoef(predicted, right)[0, 1]
    assert glue.matthews(outcome(predicted, right))["matthews"] == pytest.approx(expected)
    found = glue.correlations(outcome([1, 4, 9, 16], [1, 2, 3, 4]))
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 4, 9, 16], [1, 2, 3, 4])[0, 1])
    constant = glue.correlations(outcome([3, 3, 3], [1, 2, 3]))
    assert (constant["pearson"], constant["spearman"]) == (0.0, 0.0)


def test_articles_of_wikitext_are_whole_documents_in_the_published_splits(files):
    lines = [
        "",
        " = One = \n",
        "",
        " It is . \n",
        " = = A section = = \n",
        " = Two = \n",
        " So . \n",
    ]
    for split in ("train", "validation", "test"):
        files(hub_text.WIKITEXT_103, split, {"text": [*lines, f" = {split} = \n", " Last . \n"]})
    found = hub_text.wikitext()
    documents = bytes(found.validation).decode().split("\0")[:-1]
    assert documents == [
        " = One = \n It is . \n = = A section = = \n",
        " = Two = \n So . \n",
        " = validation = \n Last . \n",
    ]


def test_documents_of_fineweb_are_split_by_their_hash_until_the_bytes_are_read(files):
    texts = prose(400, 7)
    for part in range(2):
        half = texts[200 * part : 200 * (part + 1)]
        columns = {"text": half, "id": half, "score": np.ones(200)}
        files(hub_text.SAMPLE, "train", columns, part)
    shares = {"test": 0.2, "validation": 0.2, "train": 0.6}
    whole = hub_text.fineweb_edu(hub_text.FineWebEdu("whole", None, shares))
    parts = [bytes(each).decode().split("\0")[:-1] for each in (whole.test, whole.validation)]
    train = bytes(whole.train).decode().split("\0")[:-1]
    assert sorted([*parts[0], *parts[1], *train]) == sorted(texts)
    assert all(50 < len(part) < 120 for part in parts)
    # In the order of the files, so a part is a prefix.
    assert train == [text for text in texts if text in set(train)]
    some = hub_text.fineweb_edu(hub_text.FineWebEdu("some", 10_000, shares))
    read = sum(map(len, (some.train, some.validation, some.test)))
    assert 10_000 <= read < 11_000
    assert bytes(whole.train).startswith(bytes(some.train))


def test_a_language_model_s_task_of_the_hub_reads_windows_and_byte_pairs(files):
    for split, count in (("train", 300), ("validation", 60), ("test", 60)):
        lines = [line for text in prose(count, 3) for line in (f" = {text[:9]} = \n", text + "\n")]
        files(hub_text.WIKITEXT_103, split, {"text": lines})
    found = tasks.find("lm-wikitext103@64#bpe-300").load()
    batch = found.test.batch(np.arange(3))
    assert batch.inputs.shape == (3, 64)
    np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_pairs_of_wmt14_keep_their_published_splits_and_their_texts(files):
    for split, count in (("train", 300), ("validation", 20), ("test", 30)):
        english, german = prose(count, len(split)), prose(count, 90 + len(split))
        pairs = [{"de": de, "en": en} for en, de in zip(english, german, strict=True)]
        pairs[3] = {"de": "", "en": "Nothing."}
        pairs[4] = {"de": "zu lang " * 400, "en": "Too long."}
        files(WMT14, split, {"translation": pairs})
    task = tasks.find("wmt14-en-de#bpe-300")
    found = task.load()
    assert [len(part) for part in (found.train, found.validation, found.test)] == [298, 18, 28]
    references = task.generation.references()
    assert len(references) == 28
    batch = found.test.batch(np.arange(28))
    written = [row[: length - 1] for row, length in zip(batch.targets, batch.lengths, strict=True)]
    assert task.generation.decode(written) == references
    assert task.generation.score(references, references).metrics["bleu"] == pytest.approx(100)


def test_an_image_is_its_middle_in_one_size():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 255
    file = BytesIO()
    Image.fromarray(wide).save(file, "PNG")
    # But for the edge, which bicubic resampling blurs.
    assert square(file.getvalue(), side=16, mode="RGB")[:, 1:-1].min() == 255
    assert square(file.getvalue(), side=16, mode="L").shape == (16, 16, 1)


@pytest.mark.parametrize(
    ("name", "column", "tokens", "counts"),
    [
        ("imagenet-1k@4", "image", (4, 768), {"train": 300, "validation": 12}),
        ("lra-image", "img", (1024, 1), {"train": 12, "test": 6}),
    ],
)
def test_images_of_the_hub_are_read_from_their_files(name, column, tokens, counts, files):
    task = tasks.find(name)
    for split, count in counts.items():
        # As `datasets` writes an image.
        images = [{"bytes": image_file(seed + len(split)), "path": None} for seed in range(count)]
        files(task.hub, split, {column: images, "label": [seed % 10 for seed in range(count)]})
    found = task.load()
    assert len(found.test) == counts[list(counts)[1]]
    assert len(found.train) + len(found.validation) == counts["train"]
    batch = found.test.batch(np.arange(6))
    assert batch.inputs.shape == (6, *tokens)
    assert batch.targets.ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert -1 <= batch.inputs.min() < batch.inputs.max() <= 1


def test_an_image_task_has_square_images_only():
    with pytest.raises(DataRefusedError, match="imagenet-1k@16"):
        tasks.find("imagenet-1k@17")


def test_reviews_of_the_text_task_keep_the_published_test_split(files):
    task = tasks.find("lra-text")
    for split, count in (("train", 60), ("test", 20)):
        texts = prose(count, 100 * len(split))
        # The last training text is one of the test split, too.
        texts[-1] = "Both have this."
        files(task.hub, split, {"text": texts, "label": [0, 1] * (count // 2)})
    found = task.load()
    assert len(found.test) == 20
    assert len(found.train) + len(found.validation) == 59


def test_an_expression_of_listops_has_the_value_that_its_tokens_mean():
    rng = np.random.default_rng(5)
    for _ in range(20):
        tokens, value = lra_listops.expression(rng, 5, 200)
        assert 5 < len(tokens) < 200
        assert _evaluate(iter(tokens)) == value


def _evaluate(tokens):
    """The value of the next expression of `tokens`; None if it is the end of a list."""
    token = next(tokens)
    if token < lra_listops.DIGITS or token == lra_listops.END:
        return None if token == lra_listops.END else token
    parts = []
    while (part := _evaluate(tokens)) is not None:
        parts.append(part)
    ordered = sorted(parts)
    middle = (ordered[(len(parts) - 1) // 2] + ordered[len(parts) // 2]) // 2
    values = [ordered[0], ordered[-1], middle, sum(parts) % 10]
    return values[token - lra_listops.DIGITS]


def test_the_splits_of_listops_have_different_expressions_and_padding_behind(tmp_path):
    lra_listops.prepare({"test": 3, "validation": 2, "train": 4}, tmp_path)
    inputs = np.load(tmp_path / "train.inputs.npy")
    lengths = np.load(tmp_path / "train.lengths.npy")
    assert inputs.shape == (4, lra_listops.SHORTER)
    assert ((inputs == lra_listops.PADDING).sum(axis=1) == lra_listops.SHORTER - lengths).all()
    assert lengths.min() > lra_listops.LONGER


def test_without_the_files_a_person_is_told_how_to_fetch_them(tmp_path, monkeypatch):
    monkeypatch.setenv("QKVBENCH_HUB", str(tmp_path / "hub"))
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataUnavailableError) as told:
        tasks.find("glue-rte#bytes").load()
    lines = str(told.value).splitlines()
    assert len(lines) <= 5
    assert glue.REVISION in lines[2]
    assert "hf download nyu-mll/glue --repo-type dataset" in lines[2]


def test_a_file_of_another_schema_is_refused_with_the_reason(files):
    data = tasks.find("glue-sst2").hub
    for split in data.files:
        files(data, split, {"phrase": sentences(4, 1), "label": [0, 1, 0, 1]})
    with pytest.raises(DataUnavailableError, match="could not be read"):
        list(hub_rows.rows(data, "train"))


@pytest.mark.slow
def test_a_run_without_its_data_ends_with_one_and_the_way_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QKVBENCH_HUB", str(tmp_path / "hub"))
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))
    words = ["--variants", "q,k,v", "--tasks", "glue-rte#bytes", "--seeds", "1", "--smoke"]
    assert main(["run", *words, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "cannot run" in said
    assert "hf download" in said


def test_targets_of_wmt14_are_padded_with_nothing_that_is_scored(files):
    for split in WMT14.files:
        pairs = [{"de": f"Satz {number}", "en": f"Text {number}"} for number in range(80)]
        files(WMT14, split, {"translation": pairs})
    batch = tasks.find("wmt14-en-de#bytes").load().test.batch(np.arange(5))
    assert ((batch.targets != IGNORE_INDEX).sum(axis=1) == batch.lengths).all()


@pytest.mark.nightly
@pytest.mark.timeout(900)  # two short runs, on a busy machine
def test_a_smoke_on_files_of_the_hub_s_schemas_gives_records_with_their_metrics(files, tmp_path):
    metrics = {"glue-mrpc#bytes": "f1", "wmt14-en-de#bpe-300": "bleu"}
    data = tasks.find("glue-mrpc").hub
    for split in data.files:
        texts = {each: sentences(90, seed) for seed, each in enumerate(data.columns[:-1])}
        files(data, split, {**texts, "label": [0, 1, 1] * 30})
    for split in WMT14.files:
        pairs = zip(prose(200, len(split)), prose(200, 90 + len(split)), strict=True)
        files(WMT14, split, {"translation": [{"de": de, "en": en} for en, de in pairs]})
    words = ["--variants", "q,k,v", "--tasks", *metrics, "--seeds", "1", "--smoke"]
    assert main(["run", *words, "--out", str(tmp_path / "out")]) == 0
    records = [json.loads(path.read_text()) for path in tmp_path.glob("out/runs/*.json")]
    assert {each["task"]: each["metric"]["name"] for each in records} == metrics
    assert all(each["metric"]["name"] in each["metrics"] for each in records)


def test_a_folder_with_a_part_of_the_files_is_not_taken_for_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("QKVBENCH_HUB", str(tmp_path))
    data = tasks.find("wmt14-en-de").hub
    place = tmp_path / data.repository
    first = data.files["train"].replace("*", "00000-of-00003")
    (place / first).parent.mkdir(parents=True)
    (place / first).touch()
    (place / data.files["train"].replace("*", "00002-of-00003")).touch()
    with pytest.raises(DataUnavailableError, match=r"train-00001-of-00003.parquet of .* missing"):
        next(hub_rows.rows(data, "train"))
