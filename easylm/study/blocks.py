"""Parts of the document that several sections have."""


def section_of(id, title, text, *blocks) -> dict:
    """Without the blocks that have nothing to show yet."""
    content = ("rows", "series", "nodes", "prompts")
    shown = [block for block in blocks if any(block.get(key) for key in content)]
    return {"id": id, "title": title, "text": text, "blocks": shown}
