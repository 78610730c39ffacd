//! Aligned text: columns as wide as their widest cell, the first to the left and numbers to the right.

use std::fmt;

/// To which side of its column a cell goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Texts.
    Left,
    /// Numbers.
    Right,
}

/// A table with a header line.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<String>,
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table; the first column is aligned left, the others right.
    pub fn new(header: &[&str]) -> Self {
        let align = (0..header.len()).map(|i| if i == 0 { Align::Left } else { Align::Right }).collect();
        Self { header: header.iter().map(|&name| name.to_owned()).collect(), align, rows: Vec::new() }
    }

    /// Aligns a column.
    pub fn align(mut self, column: usize, align: Align) -> Self {
        self.align[column] = align;
        self
    }

    /// Adds a row.
    ///
    /// # Panics
    ///
    /// When it has another number of cells than the header.
    pub fn push(&mut self, row: Vec<String>) {
        assert_eq!(row.len(), self.header.len(), "cells of a row");
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = || std::iter::once(&self.header).chain(&self.rows);
        let n_chars = |cell: &String| cell.chars().count();
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| all().map(|row| n_chars(&row[column])).max().unwrap_or(0))
            .collect();
        for (at, row) in all().enumerate() {
            let mut line = String::new();
            for ((cell, &width), align) in row.iter().zip(&widths).zip(&self.align) {
                let cell = match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                };
                line += &cell;
                line += "  ";
            }
            writeln!(f, "{}", line.trim_end())?;
            if at == 0 {
                writeln!(f, "{}", "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_aligned() {
        let mut table = Table::new(&["name", "n", "kind"]).align(2, Align::Left);
        table.push(vec!["a".to_owned(), "1,000".to_owned(), "x".to_owned()]);
        table.push(vec!["longer".to_owned(), "7".to_owned(), "yy".to_owned()]);
        let expected = "name        n  kind\n-------------------\na       1,000  x\nlonger      7  yy\n";
        assert_eq!(table.to_string(), expected);
    }
}
