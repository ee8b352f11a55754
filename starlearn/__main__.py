"""python -m starlearn: the command line, where its script is not on the path."""

from starlearn.cli.app import app

if __name__ == "__main__":
    app(prog_name="starlearn")
