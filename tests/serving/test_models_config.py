from concurrent import futures

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from factorizenet_tf.serving.models_config import add_model, next_version

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


@pytest.fixture
def file(tmp_path):
    return tmp_path / "models.config"


def parsed(text):
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def test_the_first_model_makes_a_file_of_itself_alone(file, tmp_path):
    assert next_version(tmp_path, "net") == tmp_path / "net" / "1"
    assert list(tmp_path.iterdir()) == []
    assert add_model(tmp_path, "net")
    assert file.read_text() == OURS


@pytest.mark.parametrize(
    "text",
    [
        OURS.replace("net", "old"),
        EDITED,
        EDITED.replace("\n", "\r\n"),
        'model_config_list { config: [{ name: "old" }, { name: "older" }] }',
        "model_config_list < >",
        "# nothing yet",
        "",
    ],
)
def test_a_model_is_added_and_nothing_that_was_there_is_changed(text, file, tmp_path):
    file.write_bytes(text.encode())
    assert add_model(tmp_path, "net")
    merged = file.read_bytes().decode()
    *others, added = parsed(merged).model_config_list.config
    assert others == list(parsed(text).model_config_list.config)
    assert added == parsed(OURS).model_config_list.config[0]
    rest = iter(merged)
    assert all(character in rest for character in text)  # every one of its characters, in their order
    assert [line for line in text.splitlines() if line not in merged.splitlines()] in ([], text.splitlines()[-1:])


def test_a_model_that_is_there_is_left_and_one_elsewhere_is_warned_of(file, tmp_path):
    for base_path in ("/models/net/", tmp_path / "net"):  # in the container's folder, and without a container
        file.write_text(EDITED.replace("'old'", "'net'").replace("/elsewhere/old", str(base_path)))
        before = file.stat()
        assert not add_model(tmp_path, "net")
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    text = EDITED.replace("'old'", "'net'")
    file.write_text(text)
    with pytest.warns(RuntimeWarning, match=r"net at /elsewhere/old, where .*; edit the entry's base_path \(/models"):
        assert not add_model(tmp_path, "net")
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model_config_list { config { name: 'a' ", "is no models.config that can be added to"),
        (b"model_config_list { config { name: 'a' speed: 3 } }", 'no field named "speed"'),
        (b"\xff\xfe\x00", "is no models.config"),
        (b"custom_model_config { type_url: 'a' }", "has a custom_model_config"),
    ],
)
def test_a_file_that_cannot_be_added_to_is_refused_and_left(content, message, file, tmp_path):
    file.write_bytes(content)
    for function in (next_version, add_model):
        with pytest.raises(ValueError, match=rf"{message}.* it was left as it is"):
            function(tmp_path, "net")
    assert file.read_bytes() == content


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "mine.config").write_text("# mine\n")
    (tmp_path / "models").mkdir()
    link = tmp_path / "models" / "models.config"
    link.symlink_to(tmp_path / "mine.config")
    assert add_model(tmp_path / "models", "net")
    assert link.is_symlink()
    assert (tmp_path / "mine.config").read_text() == "# mine\n" + OURS


def test_models_added_at_once_are_all_there(file, tmp_path):
    names = [f"net{number}" for number in range(8)]
    with futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name: add_model(tmp_path, name), names))
    assert sorted(model.name for model in parsed(file.read_text()).model_config_list.config) == names
