"""``save_pretrained`` of a wrapped model: the plain model's files, and the pruning beside them."""

import copy
import logging
import warnings

import pytest
import torch
import transformers
from transformers import LlavaForConditionalGeneration

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.saved import HEADS

from .support.heads_files import read
from .support.saved_heads import base, method, run, saved_heads
from .support.tiny_llava import IMAGE, make_batch


@pytest.fixture
def model(tmp_path):
    return saved_heads(tmp_path)[0]


def content(folder):
    """The files by name: bytes, and of the heads, whose metadata has no order, the values."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    if HEADS in found:
        about, tensors = read(folder)
        found[HEADS] = about, {name: value.tolist() for name, value in tensors.items()}
    return found


def test_the_files_are_the_plain_models_and_the_heads(model, tmp_path):
    """Byte for byte: stock transformers cannot see that the model was wrapped."""
    model.save_pretrained(tmp_path / "wrapped")
    tp.save_heads(model, tmp_path / "heads")
    tp.unwrap(copy.deepcopy(model)).save_pretrained(tmp_path / "plain")
    expected = content(tmp_path / "plain") | content(tmp_path / "heads")
    assert content(tmp_path / "wrapped") == expected
    assert any(name.startswith("tokenprune.") for name in model.state_dict())


def test_stock_transformers_loads_it_without_a_word(model, tmp_path, caplog):
    model.save_pretrained(tmp_path / "saved")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded, found = LlavaForConditionalGeneration.from_pretrained(
                tmp_path / "saved", output_loading_info=True
            )
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records
    assert not any(found.values())
    batch = make_batch(((4, IMAGE, 6), (2, IMAGE, 3)))
    with torch.no_grad(), tp.paused(model):
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_both_come_back(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    expected, stats = run(model)
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved")
    for other in (
        tp.from_pretrained(tmp_path / "saved"),
        tp.from_pretrained(str(tmp_path / "saved")),
        tp.wrap(plain, tmp_path / "saved"),
    ):
        found, other_stats = run(other)
        assert torch.equal(found, expected)
        assert (other_stats.alive == stats.alive).all()
        assert method(other).runtime_state() == method(model).runtime_state()


def test_options_reach_the_model(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    other = tp.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert other.dtype == torch.bfloat16
    assert {p.dtype for p in engine_of(other).parameters()} == {torch.float32}


def test_without_pruning_it_says_what_to_do(tmp_path):
    base().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"has no {HEADS}: .*tokenprune\.wrap"):
        tp.from_pretrained(tmp_path)


def test_a_given_state_dict_is_saved_without_heads(model, tmp_path):
    """As transformers' Trainer gives one, where the model is spread over processes."""
    model.save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "given", state_dict=model.state_dict())
    assert content(tmp_path / "given") == content(tmp_path / "own")


def test_sharded_files_have_no_heads(model, tmp_path):
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    assert "tokenprune." not in (tmp_path / "saved/model.safetensors.index.json").read_text()
    assert torch.equal(run(tp.from_pretrained(tmp_path / "saved"))[0], run(model)[0])


def test_other_processes_write_nothing(model, tmp_path):
    model.save_pretrained(tmp_path / "saved", is_main_process=False)
    assert not list((tmp_path / "saved").iterdir())


def test_heads_that_are_not_finite_stop_it_before_it_writes(model, tmp_path):
    with torch.no_grad():
        next(engine_of(model).parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_method_that_is_not_registered_warns(tmp_path):
    class EveryOther(tp.Method):
        def select(self, context):
            return tp.Selection(keep=context.layout.mask & (context.layout.col % 2 == 0))

    model = tp.wrap(base(), EveryOther(tp.SingleLayerConfig(layer=2)))
    with pytest.warns(UserWarning, match="pruning is not saved.*register_method"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / HEADS).exists()
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path)


def test_unwrap_gives_the_own_one_back(model, tmp_path):
    assert "save_pretrained" in vars(model)
    tp.unwrap(model)
    assert "save_pretrained" not in vars(model)
    model.save_pretrained(tmp_path / "saved")
    assert HEADS not in content(tmp_path / "saved")


def test_unwrap_gives_an_instances_own_back(tmp_path):
    model = base()
    model.save_pretrained = own = lambda save_directory: None
    tp.wrap(model, tp.FastVConfig(layer=1, keep=9)).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [HEADS]
    assert tp.unwrap(model).save_pretrained is own


def test_a_copy_saves_its_own_heads(model, tmp_path):
    other = copy.deepcopy(model)
    method(other).load_runtime_state({})
    other.save_pretrained(tmp_path / "copy")
    assert method(tp.from_pretrained(tmp_path / "copy")).shifts == [[0.0, 0.0]] * 2


class Hub:
    """Stands in for huggingface_hub's client: what would have been uploaded."""

    def __init__(self):
        self.files = {}

    def create_repo(self, repo_id, **options):
        self.repo_id = repo_id
        return self

    def create_commit(self, repo_id, operations, **options):
        assert repo_id == self.repo_id
        for each in operations:
            with each.as_file() as file:
                self.files[each.path_in_repo] = file.read()


@pytest.fixture
def hub(monkeypatch):
    stand_in = Hub()
    module = transformers.utils.hub
    if hasattr(module, "hf_api"):
        monkeypatch.setattr(module, "hf_api", lambda: stand_in)
        monkeypatch.setattr(transformers.modeling_utils, "hf_api", lambda: stand_in)
    else:
        for name in ("create_repo", "create_commit"):
            monkeypatch.setattr(module, name, getattr(stand_in, name))
            monkeypatch.setattr(
                transformers.modeling_utils, name, getattr(stand_in, name), raising=False
            )
    monkeypatch.setattr(module, "create_and_tag_model_card", lambda *_, **__: Card())
    return stand_in


class Card:
    def save(self, path):
        pass


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_the_hub_gets_both(model, hub, tmp_path, how):
    folder = tmp_path / "mine"
    if how == "push_to_hub":
        model.push_to_hub("somebody/mine")
    else:
        model.save_pretrained(folder, push_to_hub=True, repo_id="somebody/mine")
        assert HEADS in content(folder)
    assert hub.repo_id == "somebody/mine"
    assert {HEADS, "model.safetensors", "config.json"} <= hub.files.keys()
    (tmp_path / "fetched").mkdir()
    for name, data in hub.files.items():
        (tmp_path / "fetched" / name).write_bytes(data)
    assert torch.equal(run(tp.from_pretrained(tmp_path / "fetched"))[0], run(model)[0])


def test_a_method_without_parameters_comes_back(tmp_path):
    """Its configuration and its budget."""
    model = tp.wrap(base(), tp.MatryoshkaConfig(stride=1))
    tp.set_budget(model, 9)
    model.save_pretrained(tmp_path)
    assert run(tp.from_pretrained(tmp_path))[1].final_tokens.tolist() == [9, 9]
