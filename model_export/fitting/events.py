"""The log of a training for TensorBoard."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from model_export.errors import TrainingError
from model_export.fitting.log import LogLine

# What ``tf.summary.scalar`` writes, which needs the package ``tensorboard``.
SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class="DATA_CLASS_SCALAR"
)


class Events:
    """Writes the figures of each epoch in TensorFlow's event format.

    Args:
        folder: Folder of the event files, which TensorBoard shows as one run.
        log: The epochs before; they are written as well if the folder has no event files yet.
    """

    def __init__(self, folder: Path, log: Sequence[LogLine]) -> None:
        self.folder = folder
        self.writer: Any = None
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.glob("events.out.tfevents.*")):
            for line in log:
                self.write(line)

    def write(self, line: LogLine) -> None:
        """Write one epoch.

        Raises:
            TrainingError: It cannot be written.
        """
        try:
            # Made with the first epoch, because making it makes a file.
            self.writer = self.writer or tf.summary.create_file_writer(str(self.folder))
            with self.writer.as_default(step=int(line["epoch"])):
                for name, value in line.items():
                    if name != "epoch":
                        tf.summary.write(name, tf.constant(value), metadata=SCALAR)
            self.writer.flush()
        except tf.errors.OpError as error:
            # TensorFlow names its function before the reason, and what failed because of it in further lines.
            reason = re.sub(r"^{{.*?}} |\n.*| \[Op:.*", "", error.message, flags=re.DOTALL)
            raise TrainingError(
                f"{self.folder} cannot be written ({reason}); choose another folder for --tensorboard"
            ) from error
