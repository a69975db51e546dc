"""Of which tasks of a run anything is found by tuning."""

from hra_jax.run.tuning import _models_by_task
from hra_jax.text import ngram
from hra_jax.text.vocabularies import CharacterVocabulary

ONE, OTHER = (ngram.train([text], CharacterVocabulary("ab"), order=2) for text in ([1, 2], [2, 1]))
TASKS = ("ann", "bob", "cy")


def test_what_was_found_with_models_is_of_no_task_that_is_decoded_greedily():
    assert _models_by_task(TASKS, {"ann": ONE, "bob": None}, searched={"ann"}) == {"ann": ONE, "cy": ONE}
    # It was searched for without a model, beside the others.
    assert _models_by_task(TASKS, {"ann": ONE, "bob": None}, searched={"ann", "bob"}) == {
        "ann": ONE,
        "bob": None,
        "cy": ONE,
    }
    # Which of several models one would have that the suite lacks nobody knows.
    assert _models_by_task(TASKS, {"ann": ONE, "bob": OTHER}, searched={"ann", "bob"}) == {"ann": ONE, "bob": OTHER}
    assert _models_by_task(TASKS, {"ann": None}, searched=set()) == dict.fromkeys(TASKS)
    assert _models_by_task(("",), {"__base__": ONE}, searched={"__base__"}) == {"": ONE}
