"""What the first process of a service asks of those that help it."""

from collections.abc import Sequence
from typing import Protocol

from models.card import ModelCard
from service.batch import Timed
from service.decoding import Encoded
from service.sums import Sums


class Helpers(Protocol):
    """Other processes that answer requests, too (`service.workers`)."""

    async def follow(self, change: tuple[str, str] | None = None) -> None:
        """Has them serve what this process serves; `change` is `load` or `unload`, and of which model."""

    async def sums(self) -> list[Sums]:
        """What they have counted."""

    def ready(self) -> int:
        """How many help now."""

    async def run_images(self, which: int, card: ModelCard, images: Sequence[Encoded]) -> Timed | None:
        """What one of them says of pictures, as a batcher of its own says it of a `Part`; None where it cannot.

        Args:
            which: of those that help now, from 0 on.
            card: of the bundle.
            images: encoded.
        """
