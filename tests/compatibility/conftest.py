"""The command line in the tests' own process, as the tests of the command line have it."""

from tests.cli.conftest import _one_test_alone as _one_test_alone
from tests.cli.conftest import call as call
