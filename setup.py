"""What pyproject.toml cannot say: a wheel has the modules that there are now.

setuptools copies sources into build/lib and packs all that lies there, modules too that were removed since an earlier
build; a folder `check/` from then would be imported in the place of today's `check.py`.
"""

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class FreshBuild(build_py):
    """Copies modules into an empty folder."""

    def run(self) -> None:
        """Build the package."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(cmdclass={"build_py": FreshBuild})
