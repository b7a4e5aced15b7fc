//! A token file, as of a pod's service account: read for each request, because the kubelet replaces it before it
//! expires and requests are rare. The kube crate reads such files too, but sends their trailing newline, which is
//! invalid in HTTP.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use http::{HeaderValue, Request, header};

/// A token file, and its last valid token.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    last: Arc<Mutex<HeaderValue>>,
}

impl TokenFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), last: Arc::new(Mutex::new(read(path)?)) })
    }

    /// Adds the file's current token to a request.
    pub fn show<B>(&self, mut request: Request<B>) -> Request<B> {
        request.headers_mut().insert(header::AUTHORIZATION, self.current());
        request
    }

    fn current(&self) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // The file is being replaced or was deleted: the last token may still be valid.
        if let Ok(now) = read(&self.path) {
            *last = now;
        }
        last.clone()
    }
}

fn read(path: &Path) -> io::Result<HeaderValue> {
    let wrong =
        |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
    let text = fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(wrong("holds no token"));
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| wrong("holds no token"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_present_token_is_shown_without_its_line_end() {
        let path = std::env::temp_dir().join(format!("shunt-token-{}", std::process::id()));
        fs::write(&path, "one\n").unwrap();
        let token = TokenFile::open(&path).unwrap();
        let shown =
            || token.show(Request::new(())).headers()[header::AUTHORIZATION].to_str().unwrap().to_owned();
        assert_eq!(shown(), "Bearer one");
        fs::write(&path, " two \r\n").unwrap();
        assert_eq!(shown(), "Bearer two");
        for half in ["", "\n", "a\nb"] {
            fs::write(&path, half).unwrap();
            assert_eq!(shown(), "Bearer two", "{half:?}");
            assert!(TokenFile::open(&path).is_err());
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(shown(), "Bearer two");
        assert!(TokenFile::open(&path).unwrap_err().to_string().contains("No such file"));
    }
}
