import pytest

from service.environment import without_relative_paths


@pytest.mark.parametrize("name", ["HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH"])
@pytest.mark.parametrize(
    ("paths", "kept"),
    [("/usr/bin:/bin", "/usr/bin:/bin"), (":/usr/bin:.:bin::/bin:", "/usr/bin:/bin"), ("bin:.", None), ("", None)],
)
def test_a_search_path_leads_only_to_absolute_paths(name: str, paths: str, kept: str | None) -> None:
    assert without_relative_paths({name: paths}).get(name) == kept


def test_other_variables_are_kept_and_the_given_environment_is_not_changed() -> None:
    environment = {"PATH": ".", "LIMELIGHT_BUNDLE": "bundles/limelight", "EMPTY": ""}

    assert without_relative_paths(environment) == {"LIMELIGHT_BUNDLE": "bundles/limelight", "EMPTY": ""}
    assert environment["PATH"] == "."
