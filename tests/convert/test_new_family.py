"""A family of encoders that is added in one file works from the published folder to the reloaded adapter."""

import numpy as np
import pytest
from reference import micro as world
from reference import whistle_family as whistle

import hra_jax
from hra_jax import params
from hra_jax.config.keys import group
from hra_jax.convert import families
from hra_jax.convert.conversion import convert
from hra_jax.convert.family import Family, TorchEncoder
from hra_jax.errors import UserError
from hra_jax.run import foundation

NEEDED = ("name", "model_type", "architectures", "extractor", "encoder", "rules", "torch")


@pytest.fixture
def register(monkeypatch):
    """Registers a family for one test."""
    monkeypatch.setattr(families, "_BY_TYPE", dict(families.known()))
    return families.register


def changed(**pieces):
    """The family with other pieces; None of them may be left out."""
    return Family(**whistle.PIECES | pieces)


def one_line(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_family_in_one_file_is_listed_converted_trained_exported_and_reloaded(register, micro, tmp_path):
    register(whistle.FAMILY)
    assert families.known()["whistle"] is whistle.FAMILY

    report = convert(whistle.publish(tmp_path / "published"), tmp_path / "backbone")
    assert (report.family, report.architecture) == ("Whistle", "WhistleForCTC")
    assert [entry.tensors for entry in report.ignored] == [2]

    pretrain = group(micro.config(), "pretrain")
    assert foundation.geometry("abstract:whistle_small", pretrain) == (report.features, report.encoder)
    counted = params.account(micro.config(backbone="abstract:whistle_small"), [3], ["hra"])
    assert counted["backbone"]["parameters"] == report.parameters

    done = world.train(micro.config(backbone=str(report.folder), steps=2, adapter__output="task"), tmp_path / "W")
    assert done.status == 0 and np.isfinite(world.losses(tmp_path / "W")).all()
    model = hra_jax.load_adapter(tmp_path / "W" / "adapter", hra_jax.load_backbone(str(report.folder)))
    assert tuple(model.tasks) == world.SPEAKERS
    heard, lengths = model.log_probs([world.tones("cab", rate=16000)], sample_rate=16000, tasks=["ann"])
    assert np.isfinite(heard).all() and lengths[0] > 0 and heard.shape[-1] == 8


@pytest.mark.parametrize("piece", NEEDED)
def test_a_family_that_lacks_a_piece_is_one_line_that_names_it(piece):
    with pytest.raises(UserError) as caught:
        Family(**{name: value for name, value in whistle.PIECES.items() if name != piece})
    assert f"lacks {piece}: " in one_line(caught)


@pytest.mark.parametrize(
    ("left_out", "told"),
    [
        ("encoder.layers.attention.key.bias", "lacks a rule for the tensor 'encoder.layers.attention.key.bias'"),
        (None, "has a rule for an unknown tensor 'encoder.layers.attention.distance'"),
    ],
)
def test_rules_that_are_not_those_of_the_encoder_are_one_line_and_no_backbone(register, left_out, told, tmp_path):
    def rules(encoder, architecture):
        found = whistle.rules(encoder, architecture)
        if left_out is None:
            return (*found, found[0]._replace(target="encoder.layers.attention.distance"))
        return tuple(rule for rule in found if rule.target != left_out)

    register(changed(rules=rules))
    source = whistle.publish(tmp_path / "published")
    with pytest.raises(UserError) as caught:
        convert(source, tmp_path / "backbone")
    assert f"family 'Whistle' {told}" in one_line(caught) and not (tmp_path / "backbone" / "backbone.json").exists()


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        (dict(model_type="lasr_ctc"), "model_type 'lasr_ctc' belongs to the family 'LASR CTC'"),
        (
            dict(architectures={"ParakeetForCTC": whistle.FAMILY.architectures["WhistleForCTC"]}),
            "architectures 'ParakeetForCTC' belongs to the family 'Parakeet CTC'",
        ),
        (dict(models={"medasr": families.models()["medasr"]}), "models 'medasr' belongs to the family 'LASR CTC'"),
        (
            dict(torch=TorchEncoder("LasrEncoderBlock")),
            "torch block 'LasrEncoderBlock' belongs to the family 'LASR CTC'",
        ),
    ],
)
def test_a_family_that_takes_what_is_another_s_is_refused(register, pieces, told):
    before = dict(families.known())
    with pytest.raises(UserError) as caught:
        register(changed(**pieces))
    assert told in one_line(caught) and families.known() == before


@pytest.mark.slow  # needs PyTorch
def test_a_model_of_a_family_without_pytorch_is_one_line(register, trained):
    torch = pytest.importorskip("torch")
    from hra_jax.torch import AdaptedModel

    register(whistle.FAMILY)
    model = type("WhistleForCTC", (torch.nn.Module,), {})()
    with pytest.raises(UserError) as caught:
        AdaptedModel(model, trained.workdir / "adapter")
    assert "WhistleForCTC" in one_line(caught) and "'Whistle'" in str(caught.value)
    assert "hra_jax.torch cannot adapt" in str(caught.value)
