"""What is told of an adapter that was tuned again."""

from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.settings import DecodeSettings
from hra_jax.run.tuning_stored import _calibrated_otherwise
from hra_jax.text import ngram
from hra_jax.text.vocabularies import CharacterVocabulary


def test_tasks_are_named_whose_searched_words_were_calibrated_with_another_model_or_other_weights():
    letters = CharacterVocabulary("ab")
    lm = ngram.train([[1, 2]], letters, order=2, name="x")
    settings = DecodeSettings(lm=(("ann", lm), ("bob", "")), lm_weight=0.8, token_bonus=0, beam=4)
    decoder = Decoder(settings, vocabularies={"ann": letters, "bob": letters})
    before = {"lm": {"name": "y", "digest": lm.digest}, "beam": 8, "lm_weight": 0.8, "token_bonus": 0.0, "wer": 0.1}
    plain = {"beam": 8, "token_bonus": 0.0}
    searched, known = {"temperature": 1.0, "search_temperature": 2.0}, decoder.search_digest("ann")

    def told(new, *, digest=known, calibrated=searched, old=before):
        calibration = calibrated if digest is None else calibrated | {"search_digest": digest}
        entries = [{"name": name, "calibration": calibration, "decode": old} for name in ("cy", "dee")]
        if old is None:
            entries = [{"name": "cy", "calibration": calibration}, {"name": "eve"}]
        return _calibrated_otherwise(ExportedAdapter({}, {}, {}, entries, {}), {"cy": new, "eve": new})

    # As recognition sees it: beam and phrases are no part of it, and it may have been calibrated before it was tuned.
    for alike in (before, before | {"beam": 16, "phrase_weight": 3.0, "wer": 0.2}):
        assert told(alike) == told(alike, old=None) == []
    for other in (before | {"lm_weight": 1.0}, before | {"token_bonus": 1.0}, before | {"lm": {"digest": "d"}}, plain):
        assert told(other) == told(other, old=None) == ["cy"]
        assert told(other, digest=None) == told(other, digest=None, calibrated={"temperature": 1.0}) == []
    bare = decoder.search_digest("bob")
    assert told(plain, digest=bare) == told({"beam": 16, "lm_weight": 0.8}, digest=bare) == []
    assert told(before, digest=bare) == ["cy"]
