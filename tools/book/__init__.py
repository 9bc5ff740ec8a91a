"The site's builder: what is in the repository, as pages that mkdocs puts into one searchable book"
