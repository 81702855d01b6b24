"""The command line of a verb: one pydantic model gives flags, help and checks."""

from collections.abc import Sequence
from typing import Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from models.card import describe_validation
from models.errors import InvalidInput


class Flags(BaseSettings):
    """Base of the verbs' settings: flags only, unknown ones refused."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        extra="forbid",
        frozen=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment says nothing here."""
        return (init_settings,)

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Self:
        """Reads the flags.

        Raises:
            InvalidInput: an unknown or wrong flag; the message has one line.
            SystemExit: with 0, after --help.
        """
        try:
            return CliApp.run(cls, cli_args=list(argv))
        except SettingsError as error:
            raise InvalidInput(str(error).removeprefix("error parsing CLI: ")) from None
        except ValidationError as error:
            raise InvalidInput(describe_validation(error).replace("Value error, ", "")) from None
