# Databricks notebook source
# MAGIC %md
# MAGIC # Score a table of images
# MAGIC
# MAGIC For a cluster in dedicated access mode with a GPU ML runtime; `conf/databricks-policy.json` is its policy. The
# MAGIC wheel (`python -m build --wheel`) and the weights lie in a volume, so no model is downloaded.

# COMMAND ----------

# MAGIC %pip install /Volumes/main/default/spark_aesthetic/spark_aesthetic-0.1.0-py3-none-any.whl
# MAGIC %pip install "open_clip_torch>=3.0" "pillow>=11.3" jinja2

# COMMAND ----------

# MAGIC %restart_python

# COMMAND ----------

source = "main.default.photos"
key = ["id"]
image_col = "content"
scores = "main.default.photo_scores"
view = "main.default.scored_photos"
volume = "/Volumes/main/default/spark_aesthetic"
predictor = "laion-aesthetics-v2"

# COMMAND ----------

# MAGIC %md
# MAGIC New rows alone are scored, chunk by chunk. Run this cell again after an interruption, and it goes on; run it
# MAGIC again after that, and it does nothing.

# COMMAND ----------

import spark_aesthetic as sa

done = sa.score_table(
    spark,
    source=source,
    key=key,
    image_col=image_col,
    scores=scores,
    view=view,
    predictor=predictor,
    model_path=f"{volume}/weights" if not predictor.startswith("untrained-") else None,
    checkpoint=f"{volume}/checkpoints",
)
print(done)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Look

# COMMAND ----------

sa.display(spark.table(view), image_col, "aesthetic_score")

# COMMAND ----------

# MAGIC %md
# MAGIC ## What was scored by what

# COMMAND ----------

sa.history(spark, scores).show()
