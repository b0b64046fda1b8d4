/// Lines of cells under headings, as wide as what is in them.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Row>,
    /// What is said where there are no rows.
    nothing: &'static str,
}

#[derive(Debug)]
struct Row {
    cells: Vec<String>,
    wide: bool,
}

#[derive(Debug)]
struct Column {
    heading: &'static str,
    wide: bool,
}

impl Table {
    /// With these headings: those that begin with `+` are for wide output alone.
    pub fn new(headings: &[&'static str], nothing: &'static str) -> Self {
        let column = |heading: &&'static str| match heading.strip_prefix('+') {
            Some(heading) => Column { heading, wide: true },
            None => Column { heading, wide: false },
        };
        Self { columns: headings.iter().map(column).collect(), rows: Vec::new(), nothing }
    }

    /// One cell a column; an empty one is shown as a dash.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(Row { cells: cells.into_iter().collect(), wide: false });
    }

    /// The same, for wide output alone.
    pub fn wide_row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(Row { cells: cells.into_iter().collect(), wide: true });
    }

    /// One table of several nodes', all of which have the same columns: a first column says whose each row is.
    pub fn of_nodes(tables: Vec<(String, Self)>) -> Self {
        let mut all = Self { columns: vec![Column { heading: "NODE", wide: false }], ..Self::default() };
        for (node, table) in tables {
            if all.columns.len() == 1 {
                all.columns.extend(table.columns);
            }
            if table.rows.iter().all(|row| row.wide) {
                let mut cells = vec![String::new(); all.columns.len()];
                if let [first, .., last] = &mut cells[..] {
                    *first = node.clone();
                    *last = table.nothing.to_owned();
                }
                all.row(cells);
            }
            let rows = table.rows.into_iter();
            all.rows.extend(rows.map(|Row { mut cells, wide }| {
                cells.insert(0, node.clone());
                Row { cells, wide }
            }));
        }
        all
    }

    pub fn render(&self, wide: bool) -> String {
        let rows: Vec<&[String]> =
            self.rows.iter().filter(|row| wide || !row.wide).map(|row| &*row.cells).collect();
        if rows.is_empty() {
            return format!("{}\n", self.nothing);
        }
        let shown: Vec<(usize, &Column)> =
            self.columns.iter().enumerate().filter(|(_, column)| wide || !column.wide).collect();
        let cell = |row: &[String], index: usize| match row.get(index).map(String::as_str) {
            Some("") | None => "-".to_owned(),
            // It comes from elsewhere, and a terminal obeys what it is told.
            Some(text) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        };
        let mut lines = vec![shown.iter().map(|(_, column)| column.heading.to_owned()).collect::<Vec<_>>()];
        lines.extend(rows.iter().map(|row| shown.iter().map(|(index, _)| cell(row, *index)).collect()));
        let widths: Vec<usize> = (0..shown.len())
            .map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or_default())
            .collect();
        let mut text = String::new();
        for line in lines {
            let padded: Vec<String> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            text.push_str(padded.join("   ").trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::new(&["NAME", "+NOTE", "STATE"], "none");
        table.row(["shop/cart", "a\u{1b}[2Jb", ""].map(str::to_owned));
        table.row(["a", "", "ready"].map(str::to_owned));
        assert_eq!(table.render(false), "NAME        STATE\nshop/cart   -\na           ready\n");
        assert_eq!(
            table.render(true),
            "NAME        NOTE     STATE\nshop/cart   a [2Jb   -\na           -        ready\n"
        );
    }

    #[test]
    fn of_several_nodes_each_row_says_whose_it_is() {
        let mut full = Table::new(&["POD", "+ID", "DETAIL"], "no pods");
        full.row(["shop/cart", "7", "fine"].map(str::to_owned));
        let empty = Table::new(&["POD", "+ID", "DETAIL"], "no pods");
        let all = Table::of_nodes(vec![("n1".to_owned(), full), ("n2".to_owned(), empty)]);
        assert_eq!(
            all.render(false),
            "NODE   POD         DETAIL\nn1     shop/cart   fine\nn2     -           no pods\n"
        );
    }

    #[test]
    fn what_is_for_wide_output_alone_is_not_shown_otherwise() {
        let mut table = Table::new(&["POD", "DETAIL"], "no pods");
        table.wide_row(["shop/far", "outside"].map(str::to_owned));
        assert_eq!(table.render(false), "no pods\n");
        assert_eq!(table.render(true), "POD        DETAIL\nshop/far   outside\n");
        let all = Table::of_nodes(vec![("n1".to_owned(), table)]);
        assert_eq!(all.render(false), "NODE   POD   DETAIL\nn1     -     no pods\n");
    }

    #[test]
    fn without_rows_it_says_so() {
        assert_eq!(Table::new(&["NAME"], "no pods").render(false), "no pods\n");
    }
}
