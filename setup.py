"""Put the recipes and the native library into the wheel; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "build_backend"))

from fathom_build import NATIVE, foreign_platform, native_build

RECIPES = Path("recipes")


class BuildWithNativeLibrary(build_py):
    """Copy ``recipes/`` beside the package's own files, and compile the native library."""

    def run(self) -> None:
        """Build as usual, then add the rest; an editable install finds the recipes in the checkout."""
        super().run()
        build = native_build()
        if self.editable_mode:
            if build.switched_off() or not build.is_usable():  # `make test` installs twice
                compile_or_say_why(build, NATIVE)
            return
        for source, built in self._recipes().items():
            self.mkpath(str(Path(built).parent))
            self.copy_file(source, built)
        compile_or_say_why(build, Path(self.build_lib) / NATIVE)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that are built, the recipes and the library too."""
        build = native_build()
        native = [Path(self.build_lib) / NATIVE / path.name for path in (build.LIBRARY, build.NOT_BUILT)]
        built = [str(path) for path in native if path.exists()]
        return [*super().get_outputs(include_bytecode), *self._recipes().values(), *built]

    def _recipes(self) -> dict[str, str]:
        files = (path for path in sorted(RECIPES.rglob("*")) if path.is_file())
        return {str(path): str(Path(self.build_lib, "fathom", path)) for path in files}


def compile_or_say_why(build, folder: Path) -> None:
    """Build the library into ``folder``, or write there why not: an installation goes on without it."""
    library, reason = folder / build.LIBRARY.name, folder / build.NOT_BUILT.name
    foreign = foreign_platform()
    for path in (library, reason):  # of an earlier build
        path.unlink(missing_ok=True)
    try:
        if build.switched_off():
            raise build.BuildError("FATHOM_NATIVE=0 was set when Fathom was installed")
        build.build(library, compiler=build.ZIG if foreign else (), target=foreign[1] if foreign else "")
    except build.BuildError as error:
        if foreign:
            raise SystemExit(f"native library: {error}") from None
        print(f"Fathom's native library was not built: {error}", file=sys.stderr)
        reason.write_text(f"{error}\n", encoding="utf-8")


class WheelOfAnyPython(bdist_wheel):
    """Tag a wheel with its platform where it holds the library, which every Python loads; else with none."""

    def run(self) -> None:
        """Build first: what was built decides."""
        if not self.skip_build:
            self.run_command("build")
        built = Path(self.get_finalized_command("build").build_lib) / NATIVE / native_build().LIBRARY.name
        self.root_is_pure = not built.exists()
        self.distribution.has_ext_modules = built.exists  # whether files go to site-packages of the platform
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the Python, the binary interface and the platform."""
        if self.root_is_pure:
            return super().get_tag()
        foreign = foreign_platform()
        return "py3", "none", foreign[0] if foreign else super().get_tag()[2]


setup(cmdclass={"bdist_wheel": WheelOfAnyPython, "build_py": BuildWithNativeLibrary})
