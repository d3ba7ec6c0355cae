"""The embedded world's own mark of an answer, for its verifiable families, and for
measuring what no reward model knows."""

from easylm.errors import UserError
from easylm.simulator import gold


def world(prompt: str, response: str, answer) -> float:
    """`answer` is {"family", "check"} of a row of simulator/world.py."""
    return gold.score(answer["family"], answer["check"], response)


def check_world(answer) -> None:
    family = answer.get("family") if isinstance(answer, dict) else None
    if family not in gold.MARKS or not isinstance(answer.get("check"), dict):
        raise UserError(
            f"world: the answer {str(answer)[:60]!r} is not of the form"
            ' {"family", "check"}; take rows of simulator/world.py'
        )
