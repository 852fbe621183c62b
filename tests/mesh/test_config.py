"""Settings: where each value comes from, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh import config, values
from mesh.config import ConfigError
from mesh.config_keys import KEYS
from mesh.home import Home

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_defaults_and_their_source(home: Home) -> None:
    found = config.load(home, {})
    assert (found.port, found.peer_port, found.mesh_enabled, found.mesh_priority) == (4000, 4001, False, 100)
    assert (found.request_timeout, found.request_gap) == (600.0, 15.0)
    assert (found.memory_budget, found.idle_timeout) == (None, None)
    assert found.model_dir == home.root / "models"
    assert found.node_name
    assert set(found.sources.values()) == {"default"}
    assert set(found.sources) == {key.name for key in KEYS}


def test_the_environment_counts_over_the_file_over_the_default(home: Home) -> None:
    home.config.write_text("port: 4100\nmesh-priority: 5\n")
    found = config.load(home, {"MLX_STACK_PORT": "4200", "MLX_STACK_MESH_ENABLED": "yes"})
    assert (found.port, found.sources["port"]) == (4200, "MLX_STACK_PORT")
    assert (found.mesh_priority, found.sources["mesh-priority"]) == (5, "config.yaml")
    assert found.mesh_enabled is True


def test_the_older_stacks_file_works_and_its_idle_keys_are_listed_once(home: Home) -> None:
    home.config.write_text("litellm-port: 4050\nopenrouter-key: sk-or-123456789\ndefault-quant: int8\nmodel-dir: /w\n")
    found = config.load(home, {})
    assert found.port == 4050
    assert found.model_dir == Path("/w")
    assert found.warnings == ("no effect here, ignored: openrouter-key, default-quant",)
    home.config.write_text("port: 4060\nlitellm-port: 4050\n")
    assert config.load(home, {}).port == 4060
    home.config.write_text("litellm-port: 4050\nport: 4060\n")
    assert config.load(home, {}).port == 4060


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("prot: 1", "unknown key 'prot' in {file}: did you mean 'port'?"),
        ("mesh_priorty: 1", "did you mean 'mesh-priority'?"),
        ("port: 70000", "'port' in {file} must be a whole number from 1 to 65535, not 70000"),
        ("port: true", "'port' in {file} must be a whole number"),
        ("mesh-enabled: maybe", "'mesh-enabled' in {file} must be true or false"),
        ("memory-budget: 24", 'write "24 GB" if you mean that'),
        ("request-timeout: soon", "'request-timeout' in {file} must be seconds"),
        ("mesh-peers: [http://x]", "'mesh-peers' in {file} must be a list of HOST"),
        ("allowed-hosts: [http://x]", "'allowed-hosts' in {file} must be a list of names"),
        ("allowed-hosts: ['x:4000']", "'allowed-hosts' in {file} must be a list of names"),
        ("allowed-hosts: ['evil*']", "'allowed-hosts' in {file} must be a list of names"),
        ("cors-origins: [chat.example.com]", "'cors-origins' in {file} must be a list of origins"),
        ("cors-origins: ['https://x/page']", "'cors-origins' in {file} must be a list of origins"),
        ("tls-cert: [a]", "'tls-cert' in {file} must be text"),
        ("node-name: a/b", "'node-name' in {file} must be a name"),
        ("a: [1", "{file} is not valid YAML at line 2"),
        ("node-name: 2026-99-99", "{file} is not valid YAML"),  # PyYAML makes dates, this is none
        ("- 1", "{file} must hold `key: value` lines"),
    ],
)
def test_an_error_names_the_key_the_file_and_what_is_wanted(home: Home, content: str, said: str) -> None:
    home.config.write_text(content + "\n")
    with pytest.raises(ConfigError) as error:
        config.load(home, {})
    assert said.format(file=home.config) in error.value.message


def test_corrupt_yaml_names_the_way_out(home: Home) -> None:
    home.config.write_bytes(b"\xff\xfe: [")
    with pytest.raises(ConfigError, match="mlx-stack config reset --yes"):
        config.load(home, {})
    kept = config.reset(home)
    assert kept is not None
    assert kept.read_bytes() == b"\xff\xfe: ["
    assert config.load(home, {}).port == 4000
    assert config.reset(home) is None


def test_a_few_lines_that_say_millions_of_values_are_refused(home: Home) -> None:
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    home.config.write_text("\n".join(["a0: &a0 [x]", *lines, "port: *a8"]))
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(home, {})
    home.config.write_text("port: &a [*a]")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(home, {})


def test_a_long_value_is_not_repeated_whole(home: Home) -> None:
    home.config.write_text(f"port: {'x' * 10_000}")
    with pytest.raises(ConfigError) as error:
        config.load(home, {})
    assert len(error.value.message) < 1000


def test_a_wrong_environment_is_named_and_a_misspelt_one_warned_about(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"'port' in the environment \(MLX_STACK_PORT\)"):
        config.load(home, {"MLX_STACK_PORT": "x"})
    found = config.load(home, {"MLX_STACK_MESH_ENABLE": "1", "MLX_STACK_HOME": "/x", "MLX_STACK_TOKEN_OF_OURS": "x"})
    assert found.warnings == ("MLX_STACK_MESH_ENABLE is no setting: did you mean MLX_STACK_MESH_ENABLED?",)


def test_a_secret_is_never_shown_whole(home: Home) -> None:
    key = config.find_key("openrouter-key")
    assert config.shown(key, "sk-or-v1-abcdef") == "sk-****def"
    assert config.shown(key, "short") == "****"
    with pytest.raises(ConfigError) as error:
        config.read_value(key, ["sk-or-v1-abcdef"])
    assert "sk-or" not in error.value.message


def test_setting_keeps_comments_and_everything_else(home: Home) -> None:
    home.config.write_text("# ours\nport: 4100  # the API\nmesh-peers:\n  - a\n  - b\n# last\nmesh-priority: 7\n")
    config.set_values(home, {"mesh-peers": "c, d:1", "mesh_priority": None, "memory-budget": "2 GB"})
    text = home.config.read_text()
    assert "# ours\nport: 4100  # the API\n" in text
    assert "# last" in text
    found = config.load(home, {})
    assert (found.port, found.mesh_peers, found.mesh_priority) == (4100, ("c", "d:1"), 100)
    assert found.memory_budget == 2 << 30
    assert "memory-budget: 2 GB" in text


def test_setting_port_replaces_the_older_name(home: Home) -> None:
    home.config.write_text("litellm-port: 4050\n")
    config.set_values(home, {"port": "4060"})
    assert home.config.read_text() == "port: 4060\n"


def test_setting_works_on_a_file_that_lines_cannot_show(home: Home) -> None:
    home.config.write_text("{port: 4100, mesh-priority: 3}\n")
    config.set_values(home, {"port": 4200})
    found = config.load(home, {})
    assert (found.port, found.mesh_priority) == (4200, 3)


def test_a_refused_value_changes_nothing(home: Home) -> None:
    home.config.write_text("port: 4100\n")
    with pytest.raises(ConfigError):
        config.set_values(home, {"port": "x"})
    assert home.config.read_text() == "port: 4100\n"


@pytest.mark.parametrize("key", [k.name for k in KEYS if k.default is not None and not k.secret])
def test_every_default_can_be_written_and_read_again(home: Home, key: str) -> None:
    entry = config.find_key(key)
    config.set_values(home, {key: config.shown(entry, entry.default)})
    found = config.load(home, {})
    assert found.value(entry) == entry.default
    assert found.source(entry) == "config.yaml"


@pytest.mark.parametrize(
    ("written", "wanted"),
    [("5m", 300.0), ("600 s", 600.0), (7, 7.0), ("1.5h", 5400.0), ("250ms", 0.25), ("10 MIN", 600.0)],
)
def test_durations(written: object, wanted: float) -> None:
    assert values.seconds()(written) == wanted


@pytest.mark.parametrize(
    ("written", "wanted"),
    [("24GB", 24 << 30), ("24 gib", 24 << 30), (25769803776, 24 << 30), ("0.5 GB", 1 << 29), ("300MB", 300 << 20)],
)
def test_sizes(written: object, wanted: int) -> None:
    assert values.size(written) == wanted


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("mac", ("mac", 4000)),
        ("mac.tailnet:4100", ("mac.tailnet", 4100)),
        ("[fe80::1%en0]:5", ("fe80::1%en0", 5)),
        ("fd00::1", ("fd00::1", 4000)),
    ],
)
def test_addresses(written: str, wanted: tuple[str, int]) -> None:
    assert values.host_port(written) == wanted


@pytest.mark.parametrize("written", ["", ":1", "a:0", "a:x", "http://a", "a b", "[::1", "[::1]x"])
def test_no_addresses(written: str) -> None:
    with pytest.raises(ValueError, match=r"HOST|whole number"):
        values.host_port(written)


@pytest.mark.parametrize(
    "written", ["*", "null", "https://a.b", "http://localhost:*", "chrome-extension://*", "http://[::1]:3000/"]
)
def test_origins(written: str) -> None:
    assert values.origins(f"{written}, https://x.y") == (written, "https://x.y")


def test_the_documentation_has_every_key_with_its_default_and_variable() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for key in KEYS:
        row = next((line for line in text.splitlines() if line.startswith(f"| `{key.name}`")), None)
        assert row is not None, f"docs/configuration.md lacks {key.name}"
        assert f"`{key.variable}`" in row
        assert key.ignored or key.default_shown in row
        for other in key.also:
            assert f"`{other}`" in row
