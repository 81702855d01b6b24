"""A form as it comes in: pictures for a quick model are run while the rest of it is on its way."""

import asyncio
from contextlib import suppress

from models.errors import FocalserveError
from service.exchange import Buffer, Call
from service.forms import Form, FormReader
from service.spread import Spread
from service.state import ServiceState

_STEP, _LONG_STEP = 128 * 1024, 4 * 1024 * 1024
_NEVER = 1 << 62


async def receive_form(state: ServiceState, call: Call) -> Form:
    """The whole form; where its pictures were begun, `call.ahead` has them.

    Raises:
        FocalserveError: as `Call.binary` and `FormReader`.
    """
    settings, incoming = state.settings, _Incoming(state, call)
    body = await call.binary(settings.max_body_bytes, settings.body_timeout, incoming.watch)
    return await incoming.finish(body)


class _Incoming:
    """Reads what has come of a form, and begins its pictures."""

    def __init__(self, state: ServiceState, call: Call) -> None:
        self._state, self._call = state, call
        self._reader = FormReader(call.header(b"content-type"), state.settings.max_images)
        self._shown = self._seen = 0
        self._failed: Exception | None = None
        self._spread: Spread | None = None

    def watch(self, body: Buffer) -> int:
        """Takes in what is there; says with how many bytes of the body it pays to do so again."""
        try:
            self._take(body)
        except Exception as error:  # the request's, not the connection's; raised once all is there
            self._failed = error
            return _NEVER
        return self._shown + self._step if self._step < _LONG_STEP else _NEVER

    async def finish(self, body: Buffer) -> Form:
        """The form; others have their turn while a long rest is read."""
        if self._failed is not None:
            raise self._failed
        body = memoryview(body)
        while self._step < min(_LONG_STEP, len(body) - self._shown):
            self._take(body[: self._shown + self._step])
            await asyncio.sleep(0)
        if self._step < _LONG_STEP:
            form = self._reader.finish(body)
        else:
            form = await asyncio.to_thread(self._reader.finish, body)
        self._add()
        return form

    @property
    def _step(self) -> int:
        """How much more there should be to be taken in: what is left of the last part is copied once more."""
        return max(_STEP, self._shown - self._reader.taken)

    def _take(self, body: Buffer) -> None:
        self._reader.feed(body)
        self._shown = len(body)
        self._add()

    def _add(self) -> None:
        files = self._reader.files[self._seen :]
        if files and not self._seen:
            with suppress(FocalserveError):  # the request itself is refused then, or waits its turn
                self._spread = self._call.ahead = self._begin()
        if self._spread is not None:
            self._spread.add([file.data for file in files])
        self._seen += len(files)

    def _begin(self) -> Spread | None:
        """A run of pictures by the model that is asked for, as far as that is known."""
        said = {key: values[0] for key, values in self._reader.fields.items()} | self._call.query()
        return self._state.images.begin(*self._state.with_card(said.get("model")), self._call)
