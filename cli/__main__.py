"""``python -m fastadam_cli`` is the command ``fastadam``."""

from .main import main

if __name__ == "__main__":
    main(prog_name="fastadam")
