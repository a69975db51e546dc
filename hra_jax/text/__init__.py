"""Text: normalisation, and the vocabularies that turn it into outputs and back."""
