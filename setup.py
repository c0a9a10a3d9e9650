"""Put the recipes into the wheel, as ``fathom/recipes``; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = Path("recipes")


class BuildWithRecipes(build_py):
    """Copy ``recipes/`` beside the package's own files."""

    def run(self) -> None:
        """Build as usual, then copy; an editable install finds the recipes in the checkout."""
        super().run()
        if self.editable_mode:
            return
        for source, built in self._recipes().items():
            self.mkpath(str(Path(built).parent))
            self.copy_file(source, built)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that are built, the recipes too."""
        return [*super().get_outputs(include_bytecode), *self._recipes().values()]

    def _recipes(self) -> dict[str, str]:
        files = (path for path in sorted(RECIPES.rglob("*")) if path.is_file())
        return {str(path): str(Path(self.build_lib, "fathom", path)) for path in files}


setup(cmdclass={"build_py": BuildWithRecipes})
