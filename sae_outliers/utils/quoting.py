"""Texts as Hydra's grammar of overrides reads them."""


def quoted(text: str) -> str:
    """Return the text between double quotes, whatever characters it has."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
