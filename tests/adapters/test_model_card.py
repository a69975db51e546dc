"""The model card of an exported adapter."""

from hra_jax.adapters.model_card import model_card


def test_no_name_starts_a_line_or_ends_a_code_of_the_card():
    evil = "a\nssh-rsa AAAA evil\n```\n# `Title`\x1b[2J"
    config = {
        "accounting": {"shared_parameters": 1, "parameters_per_task": 2, "backbone_parameters": 100},
        "backbone": {"name": evil, "fingerprint": evil},
        "method": {"name": "hra", "note": evil},
    }
    card = model_card(config, ["x"], None)
    plain = model_card(config | {"backbone": {"name": "b", "fingerprint": "f"}}, ["x"], None)
    assert len(card.splitlines()) == len(plain.splitlines()) and "\x1b" not in card
    assert not any(line.startswith(("ssh-rsa", "# `Title")) for line in card.splitlines())
    fences = [line for line in card.splitlines() if line.startswith("```")]
    assert fences == ["```python", "```", "```sh", "```"]
