# Databricks notebook source
# MAGIC %md
# MAGIC # Score a table of CLIP embeddings
# MAGIC
# MAGIC This notebook runs on every cluster and on serverless. The published heads are part of the package, so it
# MAGIC needs no download, no GPU and no torch. The wheel (`python -m build --wheel`) is in a volume.

# COMMAND ----------

# MAGIC %pip install /Volumes/main/default/spark_aesthetic/spark_aesthetic-0.1.0-py3-none-any.whl

# COMMAND ----------

# MAGIC %restart_python

# COMMAND ----------

source = "main.default.photo_embeddings"
embedding_col = "embedding"
scored = "main.default.scored_embeddings"
function = "main.default.aesthetic_score_from_embedding"

# COMMAND ----------

import spark_aesthetic as sa

score = sa.aesthetic_score_from_embedding(embedding_col).alias("aesthetic_score")
spark.table(source).select("*", score).write.mode("overwrite").saveAsTable(scored)

# COMMAND ----------

# MAGIC %md
# MAGIC Create a function in the catalog once. All users of SQL can then call it, without Python.

# COMMAND ----------

spark.sql(sa.create_function_ddl(function))

# COMMAND ----------

again = f"{function}({embedding_col}) AS aesthetic_score_again"
spark.sql(f"SELECT *, {again} FROM {scored} ORDER BY aesthetic_score DESC LIMIT 10").show()
