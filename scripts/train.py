"""`focalserve train`: the settings. `scripts.training`, which loads torch, is imported when there is work for it."""

import sys
from collections.abc import Sequence

from models.errors import FocalserveError, InvalidInput
from scripts.config import choose_task, parse_config
from scripts.interrupts import Interrupted, Interrupts
from scripts.messages import say


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `focalserve train`; returns the exit code: 0, 1 (failed), 2 (bad input), 130 or 143 (interrupted)."""
    interrupts = Interrupts()
    try:
        with interrupts.listen():
            config = choose_task(parse_config(sys.argv[1:] if argv is None else argv))
            if config.print_config:
                print(config.as_yaml(), end="")
            else:
                from scripts.training import run

                run(config, interrupts)
        return 0
    except Interrupted as stop:
        say(f"{stop}: stopped; to go on, give the same command with --resume")
        return 128 + stop.number
    except InvalidInput as error:
        say(f"error: {error}\nhelp: focalserve train --help")
        return 2
    except (FocalserveError, OSError) as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
