"""Training: gradients reach every head, and only the heads change."""

import math

import pytest
import torch
from transformers import Trainer, TrainingArguments

import tokenprune as tp
from tokenprune.engine import engine_of

from .support.tiny_llava import IMAGE, make_batch, tiny_llava
from .support.training import LAYERS, atp_llava, labelled

# -- gradients -----------------------------------------------------------------------------------

# A module behind one that drops everything has nothing to learn from.
GENTLE = {"start_redundant": -0.5}
OPTIONS = (
    {},
    {"normalisation": "minmax"},
    {"normalisation": "mass"},
    {"normalisation": "none", "start_redundant": -3.0},
    {"averaging": "all"},
    {"sources": ("self",)},
    {"sources": ("cross",)},
    {"prunings": ("redundant",), **GENTLE},
    {"prunings": ("spatial",), "start_spatial": 0.0},
    {"strides": (2,)},
    {"target_unit": "tokens"},
    {"grid": (3, 5), "hidden": 7},
    {"layers": (0, 1, 2, 3, 4), "target_tokens": 20.0, **GENTLE},
)


def check_gradients(model):
    for name, parameter in engine_of(model).named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("training", ["soft", "straight_through"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o)) or "default")
def test_every_head_of_every_module_learns(device, training, options):
    model = atp_llava(device, training=training, **options).train()
    model(**labelled(device=device)).loss.backward()
    check_gradients(model)


@pytest.mark.parametrize("training", ["soft", "straight_through"])
def test_the_language_loss_alone_reaches_every_head(training):
    model = atp_llava(training=training).train()
    model(**labelled())
    tp.losses(model)["lm"].backward()
    check_gradients(model)


@pytest.mark.parametrize("training", ["soft", "straight_through"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_float32_heads(device, dtype, training, attn):
    model = atp_llava(device, attn, dtype, training=training).train()
    out = model(**labelled(device=device, dtype=dtype))
    assert out.logits.dtype == dtype
    assert out.loss.isfinite()
    out.loss.float().backward()
    check_gradients(model)


def test_autocast_leaves_the_thresholds_in_float32(device):
    model = atp_llava(device).train()
    batch = labelled(device=device)
    logits = []
    for heads in engine_of(model).method.thresholds:
        heads.register_forward_hook(lambda module, args, output: logits.append(output.detach()))
    with torch.autocast(device, torch.bfloat16):
        loss = model(**batch).loss
    found = torch.cat(logits)
    assert (found != found.bfloat16().float()).all(), "the logits have bfloat16's few digits"
    loss.backward()
    check_gradients(model)


def test_a_few_steps_move_the_mean_to_the_target():
    """Both from above and from below, and what is dropped at inference follows."""
    batch = make_batch(((4, IMAGE, 6), (2, IMAGE, 9), (3, IMAGE, 4)))
    for start, target in ((-2.0, 18.0), (2.0, 26.0)):
        model = atp_llava(start_redundant=start, target_tokens=target)
        parameters = tp.train_only_heads(model)
        optimiser = torch.optim.Adam(parameters, lr=0.02)

        def measured(model=model):
            model.eval()
            with torch.no_grad():
                model(**batch)
            model.train()
            return tp.stats(model).mean_tokens

        before = measured()
        assert abs(before - target) > 4, (start, before)
        for _ in range(40):
            optimiser.zero_grad()
            model(**batch)
            tp.losses(model)["target"].backward()
            optimiser.step()
        assert abs(measured() - target) < 1.5, (start, before, measured())


# -- who is changed ------------------------------------------------------------------------------


def test_only_heads_change():
    model = atp_llava()
    parameters = tp.train_only_heads(model)
    assert {id(p) for p in parameters} == {id(p) for p in engine_of(model).parameters()}
    assert all(p.requires_grad for p in parameters)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    optimiser = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(**labelled()).loss.backward()
        optimiser.step()
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        # Training changes parameters; what calibration sets is in the extra state.
        trained = name.startswith("tokenprune.") and not name.endswith("_extra_state")
        assert same != trained, name
    assert all(p.grad is None for n, p in model.named_parameters() if "tokenprune" not in n)


def test_unwrap_gives_requires_grad_back():
    model = tiny_llava()
    model.model.vision_tower.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    assert len(set(before.values())) == 2
    tp.wrap(model, tp.ATPConfig(layers=LAYERS, target_tokens=18))
    for _ in range(2):  # the second call must not take frozen for what they were
        tp.train_only_heads(model)
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert frozen == set(before)
    tp.unwrap(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_training_needs_a_wrapped_model_with_heads():
    with pytest.raises(ValueError, match=r"not wrapped.*tokenprune\.wrap"):
        tp.train_only_heads(tiny_llava())


def test_the_trainer_of_transformers_trains_the_heads(tmp_path):
    model = atp_llava()
    tp.train_only_heads(model)
    batch = labelled(((4, IMAGE, 6), (2, IMAGE, 8)))
    rows = [{name: value[n] for name, value in batch.items()} for n in range(2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    result = trainer.train()
    assert result.global_step == 2
    assert math.isfinite(result.training_loss)
    for name, value in model.state_dict().items():
        trained = name.startswith("tokenprune.") and not name.endswith("_extra_state")
        assert torch.equal(value, before[name]) != trained, name
