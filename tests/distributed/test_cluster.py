"""What a configuration promises of a cluster, without starting one."""

import types

import pytest

from tensorlite.distributed import cluster


@pytest.mark.parametrize(
    ("master", "conf", "slots"),
    [
        ("local-cluster[2,1,1024]", {}, 2),
        ("local-cluster[3, 4, 1024]", {"spark.task.cpus": "2"}, 6),
        ("spark://head:7077", {}, None),
        ("spark://head:7077", {"spark.cores.max": "8", "spark.task.cpus": "2"}, 4),
        ("yarn", {"spark.executor.instances": "5"}, None),
        ("yarn", {"spark.executor.instances": "5", "spark.executor.cores": "3"}, 15),
        (
            "k8s://https://host",
            {
                "spark.executor.instances": "2",
                "spark.executor.cores": "5",
                "spark.task.cpus": "2",
            },
            4,
        ),
    ],
)
def test_promised_slots(master, conf, slots):
    context = types.SimpleNamespace(master=master, getConf=lambda: conf)
    assert cluster._promised_slots(context) == slots
