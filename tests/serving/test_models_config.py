from concurrent import futures

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from factorizenet_tf.serving.models_config import add_model, check_config

OURS = """\
model_config_list {
  config {
    name: "net"
    base_path: "/models/net"
    model_platform: "tensorflow"
  }
}
"""
EDITED = """\
# ours, see the wiki
model_config_list: <
  config { name: 'old' base_path: '/elsewhere/old' model_platform: "tensorflow"
    model_version_policy { specific { versions: 3 versions: 7 } }  # 7 is on trial }
    version_labels { key: "stable" value: 3 } version_labels { key: "canary" value: 7 }
    logging_config { sampling_config { sampling_rate: 0.1 } } }
  # the brace of the list: }
>
# the end }"""


def parsed(text):
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def test_the_first_model_makes_a_file_of_itself_alone(tmp_path):
    check_config(tmp_path, "net")
    assert list(tmp_path.iterdir()) == []
    assert add_model(tmp_path, "net")
    assert (tmp_path / "models.config").read_text() == OURS


@pytest.mark.parametrize(
    "text",
    [
        OURS.replace("net", "old"),
        EDITED,
        EDITED.replace("\n", "\r\n"),
        'model_config_list { config: [{ name: "old" }, { name: "older" }] }',
        "model_config_list {}",
        "model_config_list < >",
        "# nothing yet",
        "",
    ],
)
def test_a_model_is_added_and_nothing_that_was_there_is_changed(text, tmp_path):
    file = tmp_path / "models.config"
    file.write_bytes(text.encode())
    assert add_model(tmp_path, "net")
    merged = file.read_bytes().decode()
    *others, added = parsed(merged).model_config_list.config
    assert others == list(parsed(text).model_config_list.config)
    assert added == parsed(OURS).model_config_list.config[0]
    rest = iter(merged)
    assert all(character in rest for character in text)  # every one of its characters, in their order
    assert [line for line in text.splitlines() if line not in merged.splitlines()] in ([], text.splitlines()[-1:])


def test_a_model_that_is_there_is_left_and_the_file_is_not_written(tmp_path):
    file = tmp_path / "models.config"
    file.write_text(EDITED.replace("'old'", "'net'"))
    before = file.stat()
    assert not add_model(tmp_path, "net")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model_config_list { config { name: 'a' ", "is no models.config that can be added to"),
        (b"model_config_list { config { name: 'a' speed: 3 } }", 'no field named "speed"'),
        (b"models:\n  - name: a\n", "is no models.config"),
        (b"\xff\xfe\x00", "is no models.config"),
        (b"custom_model_config { type_url: 'a' }", "has a custom_model_config"),
    ],
)
def test_a_file_that_cannot_be_added_to_is_refused_and_left(content, message, tmp_path):
    (tmp_path / "models.config").write_bytes(content)
    for change in (check_config, add_model):
        with pytest.raises(ValueError, match=message) as caught:
            change(tmp_path, "net")
        assert "it was left as it is" in str(caught.value)
    assert (tmp_path / "models.config").read_bytes() == content


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "models.config").write_text("# mine\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "models.config").symlink_to(tmp_path / "elsewhere" / "models.config")
    assert add_model(tmp_path / "models", "net")
    assert (tmp_path / "models" / "models.config").is_symlink()
    assert (tmp_path / "elsewhere" / "models.config").read_text() == "# mine\n" + OURS


def test_a_folder_that_cannot_be_written_leaves_the_file(tmp_path, monkeypatch):
    (tmp_path / "models.config").write_text(EDITED)

    def full(path, content):
        raise OSError("the disk is full")

    monkeypatch.setattr("factorizenet_tf.serving.models_config.write_bytes", full)
    with pytest.raises(OSError, match="the disk is full"):
        add_model(tmp_path, "net")
    assert (tmp_path / "models.config").read_text() == EDITED


def test_models_added_at_once_are_all_there(tmp_path):
    names = [f"net{number}" for number in range(8)]
    with futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name: add_model(tmp_path, name), names))
    config = parsed((tmp_path / "models.config").read_text())
    assert sorted(model.name for model in config.model_config_list.config) == names
